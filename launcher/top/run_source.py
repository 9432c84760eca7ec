"""A run that is watched through its run directory."""

import time
from collections.abc import Callable

from launcher.jobs import Job
from launcher.live.quantities import duration
from launcher.live.summary import read_view
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.reader import describe, read_report
from launcher.top.moment import Age, Moment, State

STALE_AFTER = 3
"""Intervals of a view."""
_ASK_SLURM_S = 3.0


class RunSource:
    """A run by its files, which any machine can read that has the file system."""

    def __init__(
        self, job: Job, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._wall = wall
        self._monotonic = monotonic
        self._age = Age()
        self._view: LiveView | None = None
        self._is_over = False
        self._asked_at = float("-inf")

    def read(self) -> Moment:
        """See `Source`."""
        is_over = self._job_is_over()
        files = self._job.files()
        if files is None:
            return Moment(state=State.OVER, note="over, without a run") if is_over else _waiting("not started yet")
        self._view = read_view(files) or self._view
        # After the lock: a run writes its report before it releases it.
        if read_report(files) is not None:
            return self._ended(files, is_over)
        if self._view is None:
            return Moment(state=State.OVER, note=_headline(files)) if is_over else _waiting("starting")
        age_s = self._age.of(self._view, self._wall(), self._monotonic())
        if age_s <= STALE_AFTER * self._view.interval_s:
            return Moment(state=State.RUNNING, note="running", view=self._view)
        if is_over:
            return Moment(state=State.OVER, note=_headline(files), view=self._view)
        return Moment(state=State.STALE, note=f"no news for {duration(age_s)}", view=self._view)

    def _ended(self, files: RunDirLayout, is_over: bool) -> Moment:
        if is_over or self._job.slurm is None:
            return Moment(state=State.OVER, note=_headline(files), view=self._view)
        # SLURM may start the job again, in the same run directory.
        return Moment(state=State.WAITING, note=f"{_headline(files)}; SLURM has not ended the job", view=self._view)

    def _job_is_over(self) -> bool:
        if self._job.slurm is None:
            return self._job.is_over()
        if not self._is_over and self._monotonic() - self._asked_at >= _ASK_SLURM_S:
            self._is_over = self._job.is_over()
            self._asked_at = self._monotonic()
        return self._is_over


def _waiting(note: str) -> Moment:
    return Moment(state=State.WAITING, note=note)


def _headline(files: RunDirLayout) -> str:
    return describe(files).partition("\n")[0]
