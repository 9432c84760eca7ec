"""How the ranks of one start end on this node: in which order, and with what they leave behind."""

import contextlib
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher.failures.rank_exit import FAULTS, RankExit, read_record
from launcher.hangs.progress import ProgressWatch
from launcher.host.exit_watcher import ExitWatcher
from launcher.run_dir.writer import RunDir
from mimo_role.monitoring.diagnostics import stacks_file

_STAMPED_S = 1.0
_LAST = sys.maxsize


class RankProcesses:
    """Watches the ranks of one start. Made as soon as they run."""

    def __init__(
        self,
        pids: Mapping[int, int],
        attempt: int,
        run_dir: RunDir,
        folder: Path,
        watch: ProgressWatch,
        stamp: Callable[[int], int] | None,
    ) -> None:
        """
        Args:
            pids: the ranks' processes.
            attempt: which start it is.
            run_dir: where their output and errors are.
            folder: the one that they share with their agent.
            watch: over how far they come.
            stamp: gives a number that grows as ranks of this start end, on whatever node; `None` where there is one node.
        """
        self._attempt = attempt
        self._run_dir = run_dir
        self._folder = folder
        self._watch = watch
        self._stamp = stamp
        self._stamps: dict[int, int] = {}
        self._stamped = threading.Condition()
        self._exits = ExitWatcher(dict(pids), self._note)

    def so_far(self) -> list[int]:
        """The ranks that have ended by now, first to end first."""
        return self._exits.so_far()

    def wait(self) -> None:
        """Let those be noted that have ended. To be called once all have."""
        self._exits.ended()

    def elsewhere_before(self, order: int) -> bool:
        """Whether a rank of another node has ended before the one with this place."""
        with self._stamped:
            return order - 1 > sum(other < order for other in self._stamps.values())

    def record(self, rank: int, code: int) -> RankExit:
        """What is known of a rank that has ended with an exit code."""
        file = self._run_dir.error_file(self._attempt, rank)
        stacks, kept = stacks_file(self._folder, rank), file.with_name(f"rank{rank}.stacks.txt")
        if stacks.exists() and -code in FAULTS:
            with contextlib.suppress(OSError):
                shutil.copy(stacks, kept)
        return read_record(
            rank,
            code,
            order=self._order_of(rank),
            host=socket.gethostname(),
            ended_at=self._exits.time_of(rank),
            step=self._watch.last_step(rank),
            logs=(*(self._run_dir.log_file(self._attempt, rank, stream) for stream in ("stderr", "stdout")), kept),
            error_files=(file, self._folder / file.name),
            stacks=stacks,
        )

    def _note(self, rank: int) -> None:
        if self._stamp is not None:
            stamp = self._stamp(self._attempt)
            with self._stamped:
                self._stamps[rank] = stamp
                self._stamped.notify_all()

    def _order_of(self, rank: int) -> int:
        """A rank's place among those that have ended; behind all, if it is not known in time."""
        if self._stamp is None:
            in_order = self._exits.so_far()
            return in_order.index(rank) + 1 if rank in in_order else _LAST
        with self._stamped:
            self._stamped.wait_for(lambda: rank in self._stamps, _STAMPED_S)
            return self._stamps.get(rank, _LAST)
