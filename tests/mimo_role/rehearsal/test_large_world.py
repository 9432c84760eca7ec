"""torch's own APIs on one rank of 10,240, in a process of its own."""

import pytest

from mimo_role.testing import run_ranks
from tests.mimo_role.rehearsal.large_world_programs import PROGRAMS, RANK, SIZE
from tests.mimo_role.rehearsal.torch_programs import outcomes_in_a_rehearsal

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    (outcomes,) = run_ranks(outcomes_in_a_rehearsal, 1, tmp_path_factory.mktemp("board"), PROGRAMS, SIZE, RANK, timeout_s=150)
    return outcomes


def test_means_factors_and_bits_are_reduced(found):
    assert found["reductions_that_gloo_lacks"] == [[1.0, 1.0], [SIZE / 2, SIZE / 2], [5]]


def test_groups_are_split_by_their_own_places(found):
    assert found["parts_of_groups"] == {
        "sizes": [SIZE // 2, SIZE // 4, 8],
        "places": [RANK // 2, RANK // 2, RANK % 8],
        "description": "half",
        "absent": True,
        "groups": SIZE // 8,
    }


def test_messages_go_by_ranks_of_a_group(found):
    received, source, uneven = found["messages"]
    assert received == [0.0, 0.0]
    assert source == RANK - 1
    assert uneven == [2.0, 2.0, 3.0, 2.0, 3.0, 0.0]  # from each peer what this rank sends itself, as far as it goes


def test_shards_have_the_sizes_of_the_whole_world(found):
    sharded = found["sharded"]
    assert sharded["local"] == [[1, 64], [1], [1, 16], [1]]
    assert sharded["finite"]
    assert sharded["older"] == [True]


def test_a_distributed_tensor_has_this_ranks_shard_of_the_real_values(found):
    redistributed = found["redistributed"]
    row = RANK // 8 * 2
    assert redistributed["shard"] == [[(row + each) * 16.0 + RANK % 8 * 2 + column for column in range(2)] for each in range(2)]
    assert redistributed["[Replicate(), Replicate()]"] == [2560, 16]
    assert redistributed["[Replicate(), Shard(dim=0)]"] == [320, 16]
    assert redistributed["[Shard(dim=1), Replicate()]"] == [2560, 0]  # 1,280 ranks for 16 columns


def test_gradients_of_replicas_are_means(found):
    assert found["replicated"] == [[[1.0] * 4] * 4] * 2


def test_checkpoints_are_written_and_read_at_once_and_in_the_background(found):
    assert found["checkpoints"] == [True, True]
