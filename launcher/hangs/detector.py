"""What the agents do when no node's ranks make progress: ask all what they are at, and tell who holds up the others."""

from collections.abc import Mapping
from pathlib import Path

from launcher.console import Say
from launcher.coordination.coordinator import Coordinator
from launcher.hangs.probe import RankSnapshot, probe_ranks
from launcher.hangs.progress import ProgressWatch
from launcher.hangs.report import HangReport
from launcher.outcome import ExitCode, Problem
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir

_GATHER_S = 10.0


class HangDetector:
    """One agent's part. Node 0's tells what was found."""

    def __init__(
        self, plan: LaunchPlan, node_rank: int, folder: Path, run_dir: RunDir, control: Coordinator | None, say: Say
    ) -> None:
        self._plan = plan
        self._node_rank = node_rank
        self._folder = folder
        self._run_dir = run_dir
        self._control = control
        self._say = say
        self._looks = 0

    def problem(self, attempt: int, pids: Mapping[int, int], watch: ProgressWatch) -> Problem | None:
        """What was found, once no node makes progress.

        Args:
            attempt: which start of the ranks this is.
            pids: the ranks of this node that are alive.
            watch: over them.
        """
        stands_still = watch.stands_still(pids)
        if self._control is None:
            return self._judged(attempt, self._look(attempt, pids, watch)) if stands_still else None
        self._control.progress = _progress(pids, watch, stands_still=stands_still)
        if self._looks == self._control.looks:
            return None
        self._looks = self._control.looks
        name = f"sightings/{self._looks}"
        self._control.board.post(name, [sighting.as_dict() for sighting in self._look(attempt, pids, watch)])
        if self._node_rank != 0:
            return None
        everything = self._control.board.gather(name, _GATHER_S)
        problem = self._judged(attempt, [RankSnapshot.from_dict(value) for node in everything for value in node])
        if problem is not None:
            self._control.end(problem.headline, problem.code)
        return problem

    def _look(self, attempt: int, pids: Mapping[int, int], watch: ProgressWatch) -> list[RankSnapshot]:
        keep = self._run_dir.error_file(attempt, 0).parent
        steps = {rank: watch.last_step(rank) for rank in pids}
        found = probe_ranks(self._folder, pids, steps, keep)
        watch.begin_again()
        return found

    def _judged(self, attempt: int, sightings: list[RankSnapshot]) -> Problem | None:
        """Ranks that are at work, or wait within their limits, may take their time, unless the config says how long."""
        report = HangReport.of(self._plan.topology, self._plan.runtime.stall_timeout_s, sightings)
        text = report.text(self._run_dir.error_file(attempt, 0).parent)
        if self._plan.runtime.stall_timeout_is_default and not report.is_beyond_doubt:
            self._say(f"warning: {text}\n  no rank waits longer than it may; runtime.stall_timeout_s=... would end the job")
            return None
        return Problem(text, ExitCode.STALLED, report.as_dict())


def _progress(pids: Mapping[int, int], watch: ProgressWatch, *, stands_still: bool) -> str:
    if not pids:
        return "done"
    if stands_still:
        return "still"
    return "silent" if watch.is_silent else "moves"
