"""What the agents do when no node's ranks make progress: ask all what they are at, and tell who holds up the others."""

from collections.abc import Mapping
from pathlib import Path

from launcher.control import Control
from launcher.failures.problem import STALLED, Problem
from launcher.hangs.report import HangReport
from launcher.hangs.sightings import Sighting, look
from launcher.hangs.watch import Watch
from launcher.plan import LaunchPlan
from launcher.rundir import RunDir

_GATHER_S = 10.0


class Standstill:
    """One agent's part. Node 0's tells what was found."""

    def __init__(self, plan: LaunchPlan, node_rank: int, folder: Path, run_dir: RunDir, control: Control | None) -> None:
        self._plan = plan
        self._node_rank = node_rank
        self._folder = folder
        self._run_dir = run_dir
        self._control = control
        self._looked = False

    def start_again(self) -> None:
        """The ranks are started again, and may stand still again."""
        self._looked = False

    def problem(self, attempt: int, pids: Mapping[int, int], watch: Watch, *, stands_still: bool) -> Problem | None:
        """What was found, once no node makes progress.

        Args:
            attempt: which start of the ranks this is.
            pids: the ranks of this node that are alive.
            watch: over them.
            stands_still: whether they make no progress.
        """
        if self._control is None:
            return self._told(attempt, self._look(attempt, pids, watch)) if stands_still else None
        self._control.progress = "done" if not pids else "still" if stands_still else "moves"
        if self._looked or self._control.look_at != attempt:
            return None
        self._looked = True
        found = self._look(attempt, pids, watch)
        self._control.post(f"sightings/{attempt}", [sighting.as_dict() for sighting in found])
        if self._node_rank != 0:
            return None
        everything = self._control.gather(f"sightings/{attempt}", _GATHER_S)
        problem = self._told(attempt, [Sighting.from_dict(value) for node in everything for value in node])
        self._control.end(problem.headline, problem.code)
        return problem

    def _look(self, attempt: int, pids: Mapping[int, int], watch: Watch) -> list[Sighting]:
        keep = self._run_dir.error_file(attempt, 0).parent
        steps = {rank: watch.last_step(rank) for rank in pids}
        return look(self._folder, pids, steps, keep)

    def _told(self, attempt: int, sightings: list[Sighting]) -> Problem:
        report = HangReport.of(self._plan.topology, self._plan.stall_timeout_s, sightings)
        return Problem(report.text(self._run_dir.error_file(attempt, 0).parent), STALLED, report.as_dict())
