"""A training script whose stages sleep for known times, for benchmarks/sleeping_layouts.py and tests.

    sleeping_stages.py '{"samples": 840, "micro_batches": 8, "steps": 6, "forward_ms": {...}, "backward_ms": {...},
                         "frozen": [], "meets": true}'

`forward_ms` and `backward_ms` have by module what one lane and one stage would take for all samples of a micro-batch. A rank
sleeps for its lane's share of the samples and its stage's share of the module. `frozen` modules have no backward. Where
`meets`, all ranks wait for each other between steps. A sleep needs no core, so a step takes as long
on two cores as it would on one for each rank.
"""

import json
import sys
import time
from typing import Any

import torch

import mimo_role
from mimo_role import ActivationSpec, Schedule1F1B


class Sleep(torch.autograd.Function):
    """The identity, whose backward sleeps."""

    @staticmethod
    def forward(context: Any, value: torch.Tensor, seconds: float) -> torch.Tensor:
        context.seconds = seconds
        return value.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        time.sleep(context.seconds)
        return gradients[0], None


def train(ctx: mimo_role.RoleContext, workload: dict[str, Any]) -> None:
    """Run the steps of a workload."""
    samples = workload["samples"]
    frozen = tuple(workload["frozen"])

    def seconds(kind: str, module: str) -> float:
        number, lanes = ctx.lane(module)
        own = (number + 1) * samples // lanes - number * samples // lanes
        stages = ctx.topology.grids[module].axis_size("pp")
        return float(workload[kind][module]) / 1000 * own / samples / stages

    def run(module: str, _: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        number, lanes = ctx.lane(module)
        own = (number + 1) * samples // lanes - number * samples // lanes
        weight = torch.ones(1, requires_grad=module not in frozen)
        value = sum(inputs.values(), torch.ones(own, 1)) * weight
        time.sleep(seconds("forward_ms", module))
        return Sleep.apply(value, seconds("backward_ms", module))

    schedule = Schedule1F1B(
        ctx,
        run=run,
        spec_of=lambda *_: ActivationSpec.of(samples, (1,), torch.float32),
        loss_of=lambda output, _: output.sum(),
        frozen=frozen,
    )
    for step in range(workload["steps"]):
        ctx.step(step)
        losses = schedule.step(range(workload["micro_batches"]))
        if workload["meets"]:
            ctx.mean_loss(losses)


if __name__ == "__main__":
    train(mimo_role.current(), json.loads(sys.argv[1]))
