"""GPU memory of NCCL's communicators."""

import math

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import Topology
from tests.gpu.shared_gpu import DEVICE, NO_GPU, ON_GPU, SHARING, run_sharing

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.gpu,
    pytest.mark.timeout(150),
    pytest.mark.skipif(not ON_GPU, reason=NO_GPU),
]

TWO = Topology.from_modules({"vision": {}, "language": {}})
COMMUNICATORS = 4


def free_mib():
    """Free memory of the GPU when all ranks have come here. The world's communicator is in use already."""
    torch.cuda.synchronize()
    dist.barrier(device_ids=[DEVICE.index])
    free = torch.cuda.mem_get_info(DEVICE)[0] / 2**20
    dist.barrier(device_ids=[DEVICE.index])
    return free


def exchange(group):
    rank, sent, received = dist.get_rank(), torch.ones(1, device=DEVICE), torch.empty(1, device=DEVICE)
    messages = [dist.P2POp(dist.isend, sent, 1 - rank, group), dist.P2POp(dist.irecv, received, 1 - rank, group)]
    for work in dist.batch_isend_irecv(messages):
        work.wait()


def memory_of_communicators():
    """Free memory before, after all-reduces over new groups, after messages over them, and after their end."""
    context = mimo_role.current()
    free = [free_mib()]
    groups = [context.new_group([0, 1]) for _ in range(COMMUNICATORS)]
    for group in groups:
        dist.all_reduce(torch.ones(1, device=DEVICE), group=group)
    free.append(free_mib())
    for group in groups:
        exchange(group)
    free.append(free_mib())
    for group in groups:
        dist.destroy_process_group(group)
    return [*free, free_mib()]


def test_a_communicator_returns_most_of_its_memory(several_ranks, record_testsuite_property):
    before, reduced, exchanged, after = run_sharing(memory_of_communicators, TWO)[0]
    of_all = COMMUNICATORS * TWO.world_size
    for name, taken in [("all_reduce", before - reduced), ("messages", reduced - exchanged), ("kept", before - after)]:
        record_testsuite_property(f"MiB per communicator: {name}", taken / of_all)
        print(f"{name}: {taken / of_all:.1f} MiB per communicator and rank, NCCL_MAX_CTAS={SHARING['NCCL_MAX_CTAS']}")
    assert math.isfinite(before - exchanged)
    assert after - exchanged >= (before - exchanged) / 2
