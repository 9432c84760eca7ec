"""Node 0's view of one attempt, from the reports of all nodes. Pure."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.live.recent_steps import RecentSteps
from launcher.live.view import LiveView
from launcher.plan.launch_plan import LaunchPlan
from launcher.steps.job_steps import JobStep, JobSteps
from launcher.steps.metrics import StepMetrics
from launcher.steps.node_report import NodeReport
from launcher.steps.step_metrics import metrics_of
from launcher.stragglers.detector import StragglerDetector
from launcher.stragglers.straggler import Straggler

logger = logging.getLogger(__name__)

_FAULTS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a step may cause. Not `Exception`: torchelastic's handlers raise one for a signal, which has to pass."""


@dataclass(frozen=True)
class Attempt:
    """What is known of an attempt before its first step."""

    plan: LaunchPlan
    number: int
    began: float
    """Seconds since the epoch."""
    interval_s: float
    """Seconds between two reports of a node."""
    places: Mapping[int, str]
    """The node of each rank, as it is shown."""


class Collector:
    """Collects what the nodes report of the steps of an attempt."""

    def __init__(self, attempt: Attempt) -> None:
        topology = attempt.plan.topology
        self._attempt = attempt
        self._steps = JobSteps(len(attempt.plan.nodes))
        self._recent = RecentSteps(topology, attempt.places)
        self._detector = StragglerDetector(topology, attempt.places)
        self._has_failed = False

    def add(self, report: Any, now_s: float) -> None:
        """Take the JSON value of a `NodeReport`, at a time on any clock; one of another attempt is left out."""
        found = NodeReport.from_value(report)
        if found.attempt == self._attempt.number:
            self._steps.add(found, now_s)

    @property
    def has_all(self) -> bool:
        """Whether all nodes have reported that their ranks have ended."""
        return len(self._steps.ended) == len(self._attempt.plan.nodes)

    @property
    def stragglers(self) -> list[Straggler]:
        """Those that were found in the attempt."""
        return list(self._detector.found.values())

    @property
    def stragglers_left_out(self) -> int:
        """How many more were found, which cost less and have ended."""
        return self._detector.left_out

    def advance(self, now_s: float, *, is_over: bool = False) -> tuple[list[StepMetrics], list[Straggler]]:
        """The steps that are complete since the last call, and the stragglers of which something has changed with them."""
        metrics: list[StepMetrics] = []
        changed: list[Straggler] = []
        for step in self._steps.complete(now_s, is_over=is_over):
            try:
                metrics.append(self._take(step))
                changed += self._detector.add(step)
            except _FAULTS:  # a step that cannot be processed shall not end the monitoring of the next ones
                self._log(step)
        return metrics, changed

    def _take(self, step: JobStep) -> StepMetrics:
        metrics = metrics_of(self._attempt.plan.topology, self._attempt.number, step)
        self._recent.add(step, metrics)
        return metrics

    def _log(self, step: JobStep) -> None:
        if not self._has_failed:
            logger.exception("step %d is missing in live.json or metrics.jsonl; further ones are not logged", step.step)
        self._has_failed = True

    def view(self, now: float, *, is_last: bool = False) -> LiveView:
        """The attempt now; `now` is in seconds since the epoch."""
        step, total, step_s = self._steps.last_step, self._recent.total_steps, self._recent.step_s
        return LiveView(
            run=self._attempt.plan.name,
            attempt=self._attempt.number,
            time=now,
            began=self._attempt.began,
            interval_s=self._attempt.interval_s,
            world_size=self._attempt.plan.topology.world_size,
            recording=len(self._steps.recording),
            step=step,
            total_steps=total,
            step_s=step_s,
            eta_s=None if step is None or total is None or step_s is None else max(0, total - step) * step_s,
            scalars=self._recent.scalars,
            modules=self._recent.modules(),
            stragglers=self._detector.current,
            is_last=is_last,
        )
