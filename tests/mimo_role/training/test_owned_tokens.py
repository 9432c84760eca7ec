import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import BridgeError, TokenSplit, Topology
from mimo_role.training.owned_tokens import owned_tokens
from tests.mimo_role.worlds import topologies

FOUR = Topology.from_modules({"language": {"tp": 2, "cp": 2}}, layout="colocated")


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        pytest.param(TokenSplit(), [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2, id="contiguous"),
        pytest.param(TokenSplit(cp_order="zigzag"), [[0, 1, 6, 7]] * 2 + [[2, 3, 4, 5]] * 2, id="zigzag"),
        pytest.param(
            TokenSplit(cp_order="zigzag", sequence_parallel=True), [[0, 1], [6, 7], [2, 3], [4, 5]], id="and sequence parallel"
        ),
    ],
)
def test_each_rank_owns_its_tokens(split, expected):
    assert [owned_tokens(FOUR, "language", rank, 8, split).tolist() for rank in range(4)] == expected


@given(
    topologies(),
    st.integers(0, 30),
    st.builds(TokenSplit, cp_order=st.sampled_from(["contiguous", "zigzag"]), sequence_parallel=st.booleans()),
)
def test_the_ranks_of_a_lane_own_each_token_once(topology, length, split):
    for module, grid in topology.grids.items():
        axes = ("cp", "tp") if split.sequence_parallel else ("cp",)
        for lane in grid.rows(axes):
            owned = [owned_tokens(topology, module, rank, length, split).tolist() for rank in lane]
            assert sorted(token for own in owned for token in own) == list(range(length))
            assert owned == [sorted(own) for own in owned]


def test_a_length_below_zero_is_refused():
    with pytest.raises(BridgeError, match="tokens=-1; a sample has 0 or more"):
        owned_tokens(FOUR, "language", 0, -1, TokenSplit())
