"""Ranks that share one GPU over NCCL; on a machine without a GPU the same ranks over gloo.

NCCL refuses two ranks of one host on one GPU. `NCCL_HOSTID` makes each rank a host of its own, so that they communicate over
sockets of the loopback interface.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

import mimo_role
from mimo_role import RoleContext, Topology
from mimo_role.testing import run_ranks

ON_GPU = torch.cuda.is_available()
NO_GPU = "torch sees no GPU (or this is its CPU build)"
"""Why a test that cannot run over gloo is skipped."""
BACKEND = "nccl" if ON_GPU else "gloo"
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
LIMIT_S = 120.0
"""For one world, from the start of its processes to their last result."""
JOIN_S = 60.0
"""For joining and for each collective."""

SHARING = {
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_NET": "Socket",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_MNNVL_ENABLE": "0",
    "NCCL_MAX_CTAS": "4",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "60",
    "LOCAL_RANK": "0",
}
"""Set in every rank, beside `NCCL_HOSTID`. With few CUDA blocks, kernels of several ranks fit on the GPU at once."""


def share_gpu() -> None:
    """Prepare this rank for sharing the GPU; before it joins."""
    os.environ.update(SHARING, NCCL_HOSTID=f"host{os.environ['RANK']}")


def join(topology: Topology | None = None) -> RoleContext:
    """Join as one of several ranks on the GPU. In a job of mimo-launch the topology is that of the job."""
    share_gpu()
    return mimo_role.init(topology, backend=BACKEND, timeout_s=JOIN_S)


def run_sharing(fn: Callable[..., Any], topology: Topology, *args: Any) -> list[Any]:
    """Call `fn(*args)` on all ranks of a topology, which have joined; return the results in rank order."""
    return run_ranks(_joined, topology.world_size, fn, topology, args, timeout_s=LIMIT_S)


def run_unjoined(fn: Callable[..., Any], ranks: int, *args: Any) -> list[Any]:
    """The same for ranks that join by themselves."""
    return run_ranks(_prepared, ranks, fn, args, timeout_s=LIMIT_S)


def _joined(fn: Callable[..., Any], topology: Topology, args: tuple[Any, ...]) -> Any:
    join(topology)
    return fn(*args)


def _prepared(fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    share_gpu()
    return fn(*args)
