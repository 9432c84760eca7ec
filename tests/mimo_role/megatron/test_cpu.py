"""Megatron-Core without a GPU: what `run_on_cpu` replaces exists, and does there what it does on a GPU."""

import logging

import pytest
import torch
import torch.distributed as dist

from mimo_role import ContextError, Topology
from mimo_role.megatron import cpu, run_on_cpu
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="run_on_cpu refuses a machine with a GPU")


def test_a_machine_with_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ContextError, match="this machine has a GPU"):
        run_on_cpu()


def test_a_version_of_megatron_without_a_replaced_function_is_refused_by_its_name(monkeypatch):
    from megatron.core.tensor_parallel import random

    monkeypatch.delattr(random, "_set_cuda_rng_state")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ContextError, match=r"megatron\.core\.tensor_parallel\.random has no _set_cuda_rng_state"):
        run_on_cpu()
    assert torch.cuda.current_device.__module__ == "torch.cuda"


def test_what_is_replaced_exists_in_the_installed_torch_and_megatron():
    for owner, names in cpu.replacements():
        assert [name for name in names if not hasattr(owner, name)] == []


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(_, values):
        return values + torch.ones(1, device="cuda")

    @staticmethod
    def backward(_, gradient):
        return gradient * torch.full((1,), 2.0, device=torch.cuda.current_device())


def devices():
    run_on_cpu()
    run_on_cpu()
    values = torch.ones(2, requires_grad=True)
    Doubled.apply(values).sum().backward()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        torch.cuda.Event(enable_timing=True).record(torch.cuda.current_stream())
    torch.cuda.synchronize()
    made = [
        torch.zeros(1, device="cuda"),
        torch.empty(1, device="cuda:0"),
        torch.tensor([1], device=0),
        torch.arange(1, device=torch.device("cuda", 0)),
        values.to("cuda"),
        values.to(torch.cuda.current_device()),
        values.cuda(),
    ]
    return {
        "devices": {each.device.type for each in made},
        "types": [torch.ones(1, dtype=kind).type() for kind in (torch.float32, torch.bfloat16, torch.float64)],
        "gradient": values.grad.tolist(),
        "a number": torch.ones(2).sum(0).item(),
    }


def communication(rank):
    """What Megatron asks of NCCL: groups, and splits whose sizes are tensors; and the buffer of its own attention."""
    from megatron.core import parallel_state

    group = dist.new_group([0, 1], backend="nccl")
    rows, _ = dist.new_subgroups_by_enumeration([[0, 1]], backend="nccl")
    sent, received = torch.arange(3) + 10 * rank, torch.empty(2 if rank == 0 else 4, dtype=torch.int64)
    take = torch.tensor([1, 1] if rank == 0 else [2, 2])
    give = torch.tensor([1, 2])
    dist.all_to_all_single(received, sent, output_split_sizes=take, input_split_sizes=give, group=group)
    buffer = parallel_state.get_global_memory_buffer().get_tensor((2,), torch.float32, "test")
    return {
        "backends": [dist.get_backend(each) for each in (group, rows)],
        "received": received.tolist(),
        "buffer": buffer.device.type,
    }


def drawn(rank):
    """Random numbers and dropout of one of two tp ranks; the log of Megatron's tracker."""
    from megatron.core.tensor_parallel import random

    records = []
    log = logging.getLogger(random.__name__)
    log.addHandler(type("Collector", (logging.Handler,), {"emit": lambda _, record: records.append(record)})())
    random.model_parallel_cuda_manual_seed(7, tp_rank=rank, ep_rank=0, etp_rank=0)
    tracker = random.get_cuda_rng_tracker()
    shared = torch.rand(3).tolist()
    with tracker.fork():
        own = torch.rand(3).tolist()
        with tracker.fork(random.get_expert_parallel_rng_tracker_name()):
            experts = torch.rand(3).tolist()
        own += torch.rand(3).tolist()
    shared += torch.rand(3).tolist()
    weight = torch.ones(64, requires_grad=True)
    dropped = random.checkpoint(lambda x: torch.nn.functional.dropout(x, 0.5), False, weight)
    torch.autograd.backward(dropped.sum())
    return {"shared": shared, "own": own, "experts": experts, "recomputed": torch.equal(dropped, weight.grad), "log": records}


def all_parts():
    rank = dist.get_rank()
    return devices() | communication(rank) | drawn(rank)


@without_gpu
@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_devices_are_the_cpu_and_random_numbers_are_as_on_gpus():
    first, second = run_ranks(all_parts, Topology.from_modules({"vision": {"dp": 1}, "language": {"dp": 1}}), timeout_s=110)
    assert first["devices"] == {"cpu"}
    assert first["types"] == ["torch.cuda.FloatTensor", "torch.cuda.BFloat16Tensor", "torch.DoubleTensor"]
    assert first["gradient"] == [2.0, 2.0]
    assert first["a number"] == 2.0
    assert first["backends"] == ["gloo", "gloo"]
    assert [first["received"], second["received"]] == [[0, 10], [1, 2, 11, 12]]
    assert first["buffer"] == "cpu"
    expected = torch.rand(6, generator=torch.Generator().manual_seed(7))
    assert first["shared"] == pytest.approx(expected.tolist()) == second["shared"]
    own = torch.rand(6, generator=torch.Generator().manual_seed(7 + 2718 + 1))
    assert second["own"] == pytest.approx(own.tolist())
    assert first["own"] != second["own"]
    assert first["experts"] == second["experts"]
    assert first["recomputed"]
    assert second["recomputed"]
    assert first["log"] == []
