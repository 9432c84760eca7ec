"""A world of 10,240 ranks in one process, on torch's fake backend."""

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

import mimo_role
from mimo_role import GroupOptions, Topology
from mimo_role.groups import process_groups

WORLD = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8, "ep": 16}})
ROLES = {"encoder": 500, "first stage": 1024 + 7, "middle stage": 1024 + 1152 * 3, "last stage": 10_239}


@pytest.fixture(params=ROLES.values(), ids=ROLES)
def rank(request, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    dist.init_process_group("fake", store=FakeStore(), rank=request.param, world_size=WORLD.world_size)
    yield request.param
    mimo_role.shutdown()
    dist.destroy_process_group()


def test_a_context_of_ten_thousand_ranks_creates_a_dozen_groups_and_one_of_the_rank(rank, monkeypatch):
    made = []
    original = dist.new_group
    monkeypatch.setattr(
        process_groups.dist, "new_group", lambda ranks, **rest: (made.append(ranks), original(ranks, **rest))[1]
    )
    context = mimo_role.init(WORLD, groups={"language": GroupOptions(families="megatron")})
    assert context.role == WORLD.role_of(rank)
    assert made.count([rank]) == 1
    assert len(made) - 1 <= 12
    assert all(rank in ranks for ranks in made)
    for module, grid in context.topology.grids.items():
        if rank in grid:
            for axes in [("tp",), ("dp",), ("pp",), ("cp",), ("tp", "pp"), ("dp", "cp"), ("tp", "cp", "dp", "pp")]:
                assert dist.get_process_group_ranks(context.group(module, *axes)) == list(grid.row_of(rank, axes))
            count = len(made)
            assert context.mesh(module).shape == tuple(reversed(grid.shape))
            assert len(made) == count


def test_the_rehearsal_covers_every_role():
    distinct = {str(WORLD.role_of(rank)) for rank in range(WORLD.world_size)}
    assert {str(WORLD.role_of(rank)) for rank in ROLES.values()} == distinct
    assert WORLD.world_size == 10_240
