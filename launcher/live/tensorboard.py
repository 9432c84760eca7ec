"""Writes the steps of a run as TensorBoard's events, too."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.steps.metrics import StepMetrics

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardEvents:
    """The event files of one run. `tensorboard` is imported with the first step."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def append(self, steps: Sequence[StepMetrics]) -> None:
        """Add steps of one attempt.

        Raises:
            Exception: whatever TensorBoard's writer raises where it cannot write.
        """
        if not steps:
            return
        writer = self._writer = self._writer or self._open(steps[0])
        for step in steps:
            for name, value in _scalars(step):
                writer.add_scalar(name, value, step.step, walltime=step.time)
        writer.flush()

    def end_attempt(self) -> None:
        """Close the file: another attempt has its own."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, first: StepMetrics) -> "SummaryWriter":
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard leaves out what earlier attempts and runs have written of steps that this one repeats.
        return SummaryWriter(str(self._folder), purge_step=first.step)


def _scalars(step: StepMetrics) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in step.scalars.items() if math.isfinite(value))
    if step.seconds is not None:
        yield "step/seconds", step.seconds
    for name, module in step.modules.items():
        waits = (module.collectives_s, module.bridge_wait_s, module.bubble_s)
        for what, seconds in zip(("compute", "collectives", "bridge_wait", "bubble"), (module.compute_s, *waits), strict=True):
            yield f"{name}/{what}_s", seconds
        for what, count in (("samples", module.samples), ("tokens", module.tokens)):
            if count is not None and step.seconds:
                yield f"{name}/{what}_per_s", count / step.seconds
