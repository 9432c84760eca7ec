"""One rank that has the GPU for itself; without a GPU, over gloo on the CPU."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

import mimo_role
from mimo_role import GroupOptions, NcclOptions, Topology
from mimo_role.groups import creation
from mimo_role.groups.row_set import RowSet
from mimo_role.testing import run_ranks
from tests.gpu.shared_gpu import BACKEND, DEVICE, JOIN_S, LIMIT_S, NO_GPU, ON_GPU

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(150)]

ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")


def run_alone(fn):
    """Call a function on one rank, whose context it gets; return its result."""
    (found,) = run_ranks(_joined_alone, 1, fn, timeout_s=LIMIT_S)
    return found


def _joined_alone(fn):
    found = fn(mimo_role.init(ALONE, backend=BACKEND, timeout_s=JOIN_S))
    mimo_role.shutdown()
    return found


def sums_over_groups(context):
    total = torch.ones((), device=context.device)
    for module in ("vision", "language"):
        for axis in ("tp", "dp", "pp", "cp"):
            dist.all_reduce(total, group=context.group(module, axis))
    group = context.group("language", "tp")
    return total.item(), str(context.device), dist.get_backend(group), context.mesh("language").device_type


def test_a_rank_joins_creates_its_groups_and_shuts_down():
    assert run_alone(sums_over_groups) == (1.0, str(DEVICE), BACKEND, DEVICE.type)


def options_of_a_communicator(context):
    """A group of one rank has no options of a module; here it gets those of a larger group."""
    own = creation.backend_options(GroupOptions(is_high_priority_stream=True, nccl=NcclOptions(max_ctas=4)))
    split = creation.make_rows(RowSet(range(1), ()), 0, pg_options=own, group_desc="language.tp")
    total = torch.ones((), device=context.device)
    dist.all_reduce(total, group=split)
    options = split._get_backend(torch.device("cuda")).options
    return total.item(), options.is_high_priority_stream, options.config.max_ctas, split.group_desc


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason=NO_GPU)
def test_options_and_description_reach_the_communicator():
    assert run_alone(options_of_a_communicator) == (1.0, True, 4, "language.tp")


def clip_gradients(context):
    """Gradients of several types, on the device and (as FSDP2 offloads them) on the CPU, are one vector."""
    gradients = {
        "wide": torch.arange(1.0, 1001.0, device=context.device),
        "narrow": torch.arange(1.0, 101.0, device=context.device, dtype=torch.bfloat16),
        "offloaded": torch.arange(1.0, 11.0),
    }
    module = nn.Module()
    for name, gradient in gradients.items():
        module.register_parameter(name, nn.Parameter(torch.zeros_like(gradient)))
        module.get_parameter(name).grad = gradient.clone()
    norms = [context.clip_grad_norm_({"vision": module}, math.inf, norm_type).item() for norm_type in (1.0, 2.0, math.inf)]
    norm = context.clip_grad_norm_({"vision": module}, norms[1] / 2)
    halved = all(
        torch.allclose(parameter.grad, gradients[name] / 2, rtol=1e-2) for name, parameter in module.named_parameters()
    )
    return norms, norm.device.type, halved


def test_gradients_on_the_device_are_clipped():
    whole = torch.cat([torch.arange(1.0, count + 1, dtype=torch.float64) for count in (1000, 100, 10)])
    norms, device, halved = run_alone(clip_gradients)
    assert norms == pytest.approx(
        [float(torch.linalg.vector_norm(whole, norm_type)) for norm_type in (1, 2, math.inf)], rel=1e-12
    )
    assert (device, halved) == (DEVICE.type, True)


def transfer_to_itself(context):
    """Forward and back."""
    bridge = context.bridge("vision")
    sent = torch.arange(12.0, device=context.device).view(3, 4).requires_grad_()
    received = bridge(sent, batch_size=3)
    (received * torch.arange(4.0, device=context.device)).sum().backward()
    return received.device.type, received.tolist(), sent.grad.tolist()


def test_a_bridge_stays_on_the_device():
    values = torch.arange(12.0).view(3, 4).tolist()
    assert run_alone(transfer_to_itself) == (DEVICE.type, values, [[0.0, 1.0, 2.0, 3.0]] * 3)
