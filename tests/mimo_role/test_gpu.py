"""NCCL on one GPU, and gloo ranks whose tensors are on a GPU. docs/gpu.md says where these have been run."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mimo_role
from mimo_role import GroupOptions, NcclOptions, Topology
from mimo_role.groups import creation
from mimo_role.groups.rounds import RowSet
from mimo_role.testing import run_ranks

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU (or this is its CPU build)"),
]

ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")
SEVERAL = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})


def nccl_alone():
    context = mimo_role.init(ALONE, backend="nccl", timeout_s=60)
    total = torch.ones((), device=context.device)
    for module in ("vision", "language"):
        for axis in ("tp", "dp", "pp", "cp"):
            dist.all_reduce(total, group=context.group(module, axis))
    backend = dist.get_backend(context.group("language", "tp"))
    mesh = context.mesh("language").device_type
    # A group of one rank has no options of a module; here NCCL gets those of a larger group.
    own = creation.backend_options(GroupOptions(is_high_priority_stream=True, nccl=NcclOptions(max_ctas=4)))
    split = creation.make_rows(RowSet(range(1), ()), 0, pg_options=own, group_desc="language.tp")
    dist.all_reduce(total, group=split)
    options = split._get_backend(torch.device("cuda")).options
    found = options.is_high_priority_stream, options.config.max_ctas, split.group_desc
    mimo_role.shutdown()
    return float(total), str(context.device), backend, mesh, found


def test_a_job_on_one_gpu_joins_creates_its_groups_and_shuts_down():
    expected = (1.0, "cuda:0", "nccl", "cuda", (True, 4, "language.tp"))
    assert run_ranks(nccl_alone, 1, timeout_s=120) == [expected]


def cuda_tensors_over_gloo():
    context = mimo_role.current()
    found = {}
    for module in context.role.modules:
        for axes in [("tp",), ("dp",), ("tp", "dp")]:
            total = torch.full((), float(context.rank), device="cuda")
            dist.all_reduce(total, group=context.group(module, *axes))
            found[module, axes] = float(total)
    return found


def test_gloo_ranks_share_one_gpu():
    for rank, found in enumerate(run_ranks(cuda_tensors_over_gloo, SEVERAL, timeout_s=120)):
        for (module, axes), total in found.items():
            assert total == sum(SEVERAL.grids[module].row_of(rank, axes))


def clip_on_one_gpu():
    """Gradients of several types, on the GPU and (as FSDP2 offloads them) on the CPU, are one vector."""
    context = mimo_role.init(ALONE, backend="nccl", timeout_s=60)
    gradients = {
        "wide": torch.arange(1.0, 1001.0, device="cuda"),
        "narrow": torch.arange(1.0, 101.0, device="cuda", dtype=torch.bfloat16),
        "offloaded": torch.arange(1.0, 11.0),
    }
    module = nn.Module()
    for name, gradient in gradients.items():
        module.register_parameter(name, nn.Parameter(torch.zeros_like(gradient)))
        module.get_parameter(name).grad = gradient.clone()
    norms = [float(context.clip_grad_norm_({"vision": module}, math.inf, norm_type)) for norm_type in (1.0, 2.0, math.inf)]
    norm = context.clip_grad_norm_({"vision": module}, norms[1] / 2)
    halved = all(
        torch.allclose(parameter.grad, gradients[name] / 2, rtol=1e-2) for name, parameter in module.named_parameters()
    )
    mimo_role.shutdown()
    return norms, norm.device.type, halved


def test_gradients_on_a_gpu_are_clipped():
    whole = torch.cat([torch.arange(1.0, count + 1, dtype=torch.float64) for count in (1000, 100, 10)])
    ((norms, device, halved),) = run_ranks(clip_on_one_gpu, 1, timeout_s=120)
    assert norms == pytest.approx(
        [float(torch.linalg.vector_norm(whole, norm_type)) for norm_type in (1, 2, math.inf)], rel=1e-12
    )
    assert (device, halved) == ("cuda", True)


def across_a_bridge_on_one_gpu(backend):
    """A rank transfers to itself, forward and back."""
    context = mimo_role.init(ALONE, backend=backend, timeout_s=60)
    bridge = context.bridge("vision")
    sent = torch.arange(12.0, device="cuda").view(3, 4).requires_grad_()
    received = bridge(sent, batch_size=3)
    (2 * received).sum().backward()
    found = received.device.type, received.tolist(), sent.grad.tolist()
    mimo_role.shutdown()
    return found


def test_a_bridge_stays_on_one_gpu():
    values = torch.arange(12.0).view(3, 4).tolist()
    assert run_ranks(across_a_bridge_on_one_gpu, 1, "nccl", timeout_s=120) == [("cuda", values, [[2.0] * 4] * 3)]
