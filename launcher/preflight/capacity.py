"""Whether this machine can start its ranks of a plan."""

from importlib.util import find_spec

from launcher.config.schema import Backend, StartMethod
from launcher.errors import LaunchError
from launcher.host import limits, resources
from launcher.plan.launch_plan import LaunchPlan

MEMORY_PER_RANK = {StartMethod.FORKSERVER: 40 << 20, StartMethod.SPAWN: 250 << 20}
"""Bytes that one rank takes before it has a model, measured with torch 2.13 (see docs/measurements.md)."""


def check(plan: LaunchPlan, node_rank: int) -> None:
    """Refuse a plan whose ranks of this node cannot start here.

    Raises:
        LaunchError: more ranks than GPUs, memory or open files, or NCCL or a NUMA binding without a GPU; or TensorBoard is to
            be written and is not installed.
    """
    if plan.runtime.tensorboard and node_rank == 0 and find_spec("tensorboard") is None:
        raise LaunchError("runtime.tensorboard needs TensorBoard: pip install 'mimo-launch[tensorboard]'; or leave it out")
    ranks, gpus = plan.nodes[node_rank].procs, resources.gpus()
    if plan.runtime.backend is Backend.NCCL and not gpus:
        raise LaunchError("runtime.backend=nccl, but this machine has no NVIDIA GPU; use gloo, or auto")
    if plan.runtime.numa_binding is not None and gpus < ranks:
        raise LaunchError(
            f"runtime.numa_binding={plan.runtime.numa_binding.value} binds each rank to cores near a GPU of its own, but this "
            f"machine has {gpus} GPUs for {ranks} ranks; leave it out, or make the modules smaller"
        )
    if plan.runtime.backend is not Backend.GLOO and 0 < gpus < ranks:
        raise LaunchError(f"{ranks} ranks, but this machine has {gpus} GPUs; make the modules smaller, or runtime.backend=gloo")
    free, needed = resources.available_memory(), ranks * MEMORY_PER_RANK[plan.runtime.start_method]
    if free is not None and needed > free:
        raise LaunchError(
            f"{ranks} ranks take about {needed / 2**30:.1f} GiB before they have a model, but this machine has "
            f"{free / 2**30:.1f} GiB left; make the modules smaller, or spread them over nodes with pools"
        )
    limits.allow_open_files(ranks)
