"""Writes live.json, metrics.jsonl and TensorBoard's events. What cannot be written is logged once and ends nothing."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from launcher.live.tensorboard import TensorBoardEvents
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from launcher.steps.metrics import StepMetrics
from mimo_role.host.files import write_whole

logger = logging.getLogger(__name__)

_FAULTS = (OSError, ImportError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What TensorBoard may raise. Not `Exception`: torchelastic's handlers raise one for a signal, which has to pass."""


class LiveFiles:
    """Those of one run."""

    def __init__(self, run_dir: RunDirLayout, *, tensorboard: bool = False) -> None:
        self._run_dir = run_dir
        self._events = TensorBoardEvents(run_dir.tensorboard_dir) if tensorboard else None
        self._is_line_broken = False
        """Whether a line of the metrics may lack its end."""
        self._has_failed = False

    def write(self, view: LiveView) -> None:
        """Replace the view."""
        try:
            write_whole(self._run_dir.live_file, view.to_json())
        except OSError as error:
            self._log(f"{self._run_dir.live_file}: {error.strerror}")

    def append(self, metrics: Sequence[StepMetrics]) -> None:
        """Add steps of one attempt. Those that cannot be written are lost."""
        if not metrics:
            return
        self._append_lines(metrics)
        if self._events is not None:
            self._guard_events(partial(self._events.append, metrics))

    def end_attempt(self) -> None:
        """Close what is open."""
        if self._events is not None:
            self._guard_events(self._events.end_attempt)

    def _append_lines(self, metrics: Sequence[StepMetrics]) -> None:
        begin = "\n" if self._is_line_broken else ""
        text = begin + "".join(f"{each.to_json()}\n" for each in metrics)
        try:
            with self._run_dir.metrics_file.open("a", encoding="utf-8") as file:
                file.write(text)
            self._is_line_broken = False
        except OSError as error:
            self._is_line_broken = self._run_dir.metrics_file.exists()
            self._log(f"{self._run_dir.metrics_file}: {error.strerror}")

    def _guard_events(self, write: Callable[[], None]) -> None:
        try:
            write()
        except _FAULTS as error:
            self._events = None
            logger.warning("%s: %s; no events are written any more", self._run_dir.tensorboard_dir, error)

    def _log(self, problem: str) -> None:
        if not self._has_failed:
            logger.warning("%s; live.json or metrics.jsonl may miss steps, and this is not logged again", problem)
        self._has_failed = True
