import pytest
import torch
import torch.distributed as dist

from mimo_role.testing import RankFailedError
from tests.gpu.shared_gpu import BACKEND, DEVICE, ON_GPU, run_unjoined
from tests.launcher.jobs import Job


def plain_torch() -> tuple[float, float, str]:
    """What the tests of several ranks rely on, without mimo-launch."""
    dist.init_process_group(BACKEND, device_id=DEVICE if ON_GPU else None)
    rank = dist.get_rank()
    total = torch.full((4,), rank + 1.0, device=DEVICE)
    dist.all_reduce(total)
    both = None
    if ON_GPU:
        alone = dist.split_group(split_ranks=[[0], [1]], group_desc="alone")
        both = dist.split_group(split_ranks=[[0, 1]], group_desc="both")
        dist.all_reduce(total, group=alone)
    sent, received = torch.full((4,), 10.0 + rank, device=DEVICE), torch.empty(4, device=DEVICE)
    messages = [dist.P2POp(dist.isend, sent, 1 - rank, both), dist.P2POp(dist.irecv, received, 1 - rank, both)]
    for work in dist.batch_isend_irecv(messages):
        work.wait()
    found = total.sum().item(), received.sum().item()
    dist.destroy_process_group()
    return *found, f"NCCL {torch.cuda.nccl.version()} on {torch.cuda.get_device_name()}" if ON_GPU else "gloo"


@pytest.fixture(scope="session")
def two_plain_ranks() -> list[tuple[float, float, str]] | str:
    """The results of `plain_torch` on two ranks, or the error."""
    try:
        return run_unjoined(plain_torch, 2)
    except RankFailedError as error:
        return str(error)


@pytest.fixture
def several_ranks(two_plain_ranks: list[tuple[float, float, str]] | str) -> None:
    """Skip where NCCL does not run several ranks on one GPU, which its maintainers do not support."""
    if ON_GPU and isinstance(two_plain_ranks, str):
        pytest.skip("plain torch cannot run two NCCL ranks on this GPU: see test_plain_torch_runs_two_ranks")


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)
