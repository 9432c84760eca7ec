"""A run that is watched through its run directory."""

import time
from collections.abc import Callable

from launcher.jobs import Job
from launcher.live.quantities import duration
from launcher.live.summary import read_view
from launcher.live.view import LiveView
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.reader import describe, read_report
from launcher.top.moment import STALE_AFTER, Age, Moment, State

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
            state, note = (State.OVER, "over, without a run") if is_over else (State.WAITING, "not started yet")
            return Moment(state=state, note=note)
        self._view = read_view(files) or self._view
        # After the lock: a run writes its report before it releases it.
        if read_report(files) is not None:
            state, note = self._state_after_report(files, is_over)
        elif is_over and not self._is_fresh():
            state, note = State.OVER, _headline(files)
        else:
            state, note = self._state_of_ranks()
        return Moment(state=state, note=note, view=self._view)

    def _state_after_report(self, files: RunDirLayout, is_over: bool) -> tuple[State, str]:
        if is_over or self._job.slurm is None:
            return State.OVER, _headline(files)
        # SLURM may start the job again, in the same run directory.
        return State.WAITING, f"{_headline(files)}; SLURM has not ended the job"

    def _state_of_ranks(self) -> tuple[State, str]:
        if self._view is None:
            return State.WAITING, "starting"
        if self._is_fresh():
            return State.RUNNING, "running"
        if self._view.is_last:
            return State.WAITING, f"attempt {self._view.attempt} has ended"
        return State.STALE, f"no news for {duration(self._age_s(self._view))}"

    def _is_fresh(self) -> bool:
        return self._view is not None and self._age_s(self._view) <= STALE_AFTER * self._view.interval_s

    def _age_s(self, view: LiveView) -> float:
        return self._age.of(view, self._wall(), self._monotonic())

    def _job_is_over(self) -> bool:
        if self._job.slurm is None:
            return self._job.is_over()
        if not self._is_over and self._monotonic() - self._asked_at >= _ASK_SLURM_S:
            self._is_over = self._job.is_over()
            self._asked_at = self._monotonic()
        return self._is_over


def _headline(files: RunDirLayout) -> str:
    return describe(files).partition("\n")[0]
