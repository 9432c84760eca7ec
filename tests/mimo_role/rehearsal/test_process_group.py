"""A group whose peers have what this rank has, beside gloo ranks that really have the same."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore
from torch.distributed._functional_collectives import all_reduce as functional_all_reduce
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mimo_role.rehearsal.process_group import NAME, RehearsalGroup, register
from mimo_role.rehearsal.traffic import Traffic, runs_of
from mimo_role.testing import run_ranks

SIZE = 3
OPERATIONS = ("SUM", "AVG", "MIN", "MAX", "PRODUCT")


def collectives():
    """What each collective gives on this rank, where all ranks have the same tensors."""
    found = {}
    own = torch.tensor([[1.0, -2.0], [0.5, 3.0], [4.0, 5.0]])
    for name in OPERATIONS:
        if name != "AVG" or dist.get_backend() != "gloo":  # which gloo lacks
            tensor = own.clone()
            dist.all_reduce(tensor, getattr(dist.ReduceOp, name))
            found[f"all_reduce {name}"] = tensor
    flags = torch.tensor([6, 3])
    for name in ("BAND", "BOR", "BXOR"):
        tensor = flags.clone()
        dist.all_reduce(tensor, getattr(dist.ReduceOp, name))
        found[f"all_reduce {name}"] = tensor
    tensor = own.clone()
    dist.broadcast(tensor, src=1)
    found["broadcast"] = tensor
    parts = [torch.empty_like(own) for _ in range(SIZE)]
    dist.all_gather(parts, own)
    found["all_gather"] = torch.stack(parts)
    whole = torch.empty(SIZE * 3, 2)
    dist.all_gather_into_tensor(whole, own)
    found["all_gather_into_tensor"] = whole
    part = torch.empty(1, 2)
    dist.reduce_scatter_tensor(part, own.clone())
    found["reduce_scatter_tensor"] = part
    row = torch.empty(2)
    dist.reduce_scatter(row, list(own.clone()))
    found["reduce_scatter"] = row
    parts = [torch.empty_like(own) for _ in range(SIZE)] if dist.get_rank() == 1 else None
    dist.gather(own, parts, dst=1)
    found["gather"] = torch.stack(parts) if parts else torch.zeros(1)
    exchanged = torch.empty_like(own)
    dist.all_to_all_single(exchanged, own)
    found["all_to_all_single"] = exchanged
    found["functional"] = functional_all_reduce(own, "sum", dist.group.WORLD) + 0
    objects = [None] * SIZE
    dist.all_gather_object(objects, {"same": 1})
    found["objects"] = torch.tensor([each["same"] for each in objects])
    subgroup = dist.new_group([0, 1], use_local_synchronization=True) if dist.get_rank() < 2 else None
    if subgroup is not None:
        tensor = own.clone()
        dist.all_reduce(tensor, group=subgroup)
        found["subgroup"] = tensor
    work = dist.barrier(async_op=True)
    work.wait()
    return {name: tensor.tolist() for name, tensor in found.items()}


def joined():
    dist.init_process_group("gloo")
    found = collectives()
    dist.destroy_process_group()
    return found


@pytest.fixture
def join():
    """Join a world of ranks that do not exist; returns what has been counted."""
    traffic = Traffic()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        register(lambda _store, rank, size, _timeout: RehearsalGroup(rank, size, traffic))

        def join_as(rank, world_size):
            dist.init_process_group(NAME, store=HashStore(), rank=rank, world_size=world_size)
            return traffic

        yield join_as
        dist.destroy_process_group()


@pytest.mark.ranks
@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("rank", range(SIZE))
def test_collectives_give_what_gloo_gives_where_all_ranks_have_the_same(join, rank):
    real = run_ranks(joined, SIZE)[rank]
    join(rank, SIZE)
    rehearsed = collectives()
    assert rehearsed.pop("all_reduce AVG") == [[1.0, -2.0], [0.5, 3.0], [4.0, 5.0]]
    # In an exchange of different parts, each peer sends what this rank would send to itself.
    assert rehearsed.pop("all_to_all_single") == [real.pop("all_to_all_single")[rank]] * SIZE
    assert rehearsed == real


def test_what_is_received_is_zero(join):
    join(1, SIZE)
    tensor = torch.ones(4)
    assert dist.recv(tensor, src=0) == 0
    assert tensor.tolist() == [0.0] * 4
    (work,) = dist.batch_isend_irecv([dist.P2POp(dist.irecv, torch.ones(2), 2)])
    work.wait()
    scattered = torch.ones(2)
    dist.scatter(scattered, src=0)
    assert scattered.tolist() == [0.0, 0.0]


def test_ten_thousand_ranks_have_a_dozen_groups(join):
    join(5, 10_240)
    groups = [dist.new_group(list(range(0, 10_240, step)), use_local_synchronization=True) for step in (1, 5) * 6]
    tensor = torch.ones(2)
    dist.all_reduce(tensor, group=groups[1])
    assert tensor.tolist() == [2048.0, 2048.0]


def test_fsdp2_shards_and_sums_over_peers_that_have_the_same(join):
    join(2, 4)
    model = torch.nn.Linear(8, 6)
    whole = model.weight.detach().clone()
    fully_shard(model, mesh=init_device_mesh("cpu", (4,)))
    assert model.weight.to_local().shape == (2, 8)
    assert torch.equal(model.weight.to_local(), whole[4:6])
    model(torch.ones(3, 8)).sum().backward()
    assert torch.equal(model.weight.grad.to_local(), torch.full((2, 8), 3.0))  # the mean over equal peers


def test_ddp_keeps_the_mean_of_equal_gradients(join):
    join(0, 1000)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 1, bias=False))
    model(torch.ones(2, 3)).sum().backward()
    assert torch.allclose(model.module.weight.grad, torch.full((1, 3), 2.0))


def test_traffic_is_counted_by_group_operation_and_step(join):
    traffic = join(0, 8)
    dist.all_reduce(torch.ones(10))
    for elements in (6, 7, 8):
        traffic.begin_step()
        dist.all_reduce(torch.ones(elements))
    dist.isend(torch.ones(4, dtype=torch.float64), 1).wait()
    world = {"group": "world", "size": 8}
    assert traffic.as_list() == [
        {
            **world,
            "operation": "all_reduce",
            "calls": 4,
            "bytes": 124,
            "step_calls": 1,
            "step_bytes": 28,
            "ranks": ((0, 8, 1),),
        },
        {**world, "operation": "send", "calls": 1, "bytes": 32, "step_calls": 0, "step_bytes": 0, "ranks": ((1, 2, 1),)},
    ]


def test_the_only_step_is_all_that_comes_after_its_beginning(join):
    traffic = join(0, 8)
    dist.all_reduce(torch.ones(10))
    traffic.begin_step()
    dist.all_reduce(torch.ones(6))
    (found,) = traffic.as_list()
    assert (found["bytes"], found["step_bytes"]) == (64, 24)


@given(st.sets(st.integers(0, 60)))
def test_ranks_of_a_group_are_recorded_as_ranges(ranks):
    assert [rank for run in runs_of(sorted(ranks)) for rank in range(*run)] == sorted(ranks)


def test_ranks_of_equal_steps_are_one_range():
    assert runs_of([3, 7, 11, 15]) == ((3, 16, 4),)
