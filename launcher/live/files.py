"""Writes live.json and metrics.jsonl. What cannot be written is logged once and ends nothing."""

import logging
from collections.abc import Sequence

from launcher.live.metrics import StepMetrics
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from mimo_role.host.files import write_whole

logger = logging.getLogger(__name__)


class LiveFiles:
    """The two files of one run."""

    def __init__(self, run_dir: RunDirLayout) -> None:
        self._run_dir = run_dir
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
        """Add steps to the metrics. Those that cannot be written are lost."""
        if not metrics:
            return
        begin = "\n" if self._is_line_broken else ""
        text = begin + "".join(f"{each.to_json()}\n" for each in metrics)
        try:
            with self._run_dir.metrics_file.open("a", encoding="utf-8") as file:
                file.write(text)
            self._is_line_broken = False
        except OSError as error:
            self._is_line_broken = self._run_dir.metrics_file.exists()
            self._log(f"{self._run_dir.metrics_file}: {error.strerror}")

    def _log(self, problem: str) -> None:
        if not self._has_failed:
            logger.warning("%s; live.json or metrics.jsonl may miss steps, and this is not logged again", problem)
        self._has_failed = True
