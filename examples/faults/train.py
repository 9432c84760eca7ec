"""A training loop that goes wrong in a way that the command line chooses, on one rank of the language model.

mimo-launch run examples/faults/job.yaml -- exception
torchrun --nproc-per-node 4 examples/faults/train.py exception
"""

import ctypes
import os
import signal
import sys
import time

import torch
import torch.distributed as dist

import mimo_role
from mimo_role import RoleContext, Topology

FAILING_STEP = 5
STEPS = 20
TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})


def go_wrong(fault: str) -> None:
    """What the last stage of the language model does in one step."""
    if fault == "exception":
        raise ValueError("the labels have 17 classes, the head has 16")
    if fault == "crash":
        ctypes.string_at(0)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(10_000)
    if fault == "import":
        import flash_attention_4  # noqa: F401


def train(ctx: RoleContext, fault: str) -> None:
    """Go through the steps; every rank waits for all others in each."""
    for step in range(1, STEPS + 1):
        ctx.step(step, of=STEPS)
        if step == FAILING_STEP and ctx.rank == ctx.world_size - 1:
            go_wrong(fault)
        if ctx.role.has_language_module:
            dist.all_reduce(torch.ones(1), group=ctx.group("language", "pp"))
        dist.barrier()


if __name__ == "__main__":
    under_mimo_launch = "MIMO_RUN_ID" in os.environ
    context = mimo_role.current() if under_mimo_launch else mimo_role.init(TOPOLOGY, backend="gloo", timeout_s=30)
    train(context, sys.argv[1])
