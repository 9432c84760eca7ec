"""The ranks of one attempt on this node: their processes, and in which order and how they end."""

import contextlib
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from signal import Signals

from launcher import formatting
from launcher.agent.interrupts import Interrupts
from launcher.console import Say
from launcher.failures.rank_exit import FAULTS, RankExit, read_rank_exit
from launcher.hangs.progress import ProgressWatch
from launcher.host.exit_watcher import ExitWatcher
from launcher.run_dir.layout import RunDirLayout
from mimo_role.host import node_dir

_PLACE_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 10.0
"""How long to wait for exit codes after SIGKILL. They come through the fork server, which is killed 6 s after it stopped."""
_POLL_S = 0.01
_PATIENCE_S = 1.0
"""How long a user who has pressed Ctrl-C waits without a message."""
_LAST = sys.maxsize


class RankProcesses:
    """A new one for each attempt, made as soon as its ranks run."""

    def __init__(
        self,
        attempt: int,
        pids: Mapping[int, int],
        exit_codes: Callable[[], Mapping[int, int | None]],
        run_dir: RunDirLayout,
        node_directory: Path,
        watch: ProgressWatch,
        count_exit: Callable[[int], int],
    ) -> None:
        """
        Args:
            attempt: its number.
            pids: the process of each rank.
            exit_codes: reads the exit code of each rank, negative for a signal; `None` while it runs.
            run_dir: the directory with their output and errors.
            node_directory: of this node.
            watch: of their progress.
            count_exit: called with the attempt as a rank ends; counts those that have ended, on all nodes.
        """
        self.attempt = attempt
        self.pids = dict(pids)
        self.exit_codes = exit_codes
        self._run_dir = run_dir
        self._node_dir = node_directory
        self._watch = watch
        self._count_exit = count_exit
        self._places: dict[int, int] = {}
        """The place of each rank that has ended, in the order of all nodes."""
        self._placed = threading.Condition()
        self._watcher = ExitWatcher(self.pids, self._place)

    def alive(self, exit_codes: Mapping[int, int | None]) -> dict[int, int]:
        """The processes of the ranks without an exit code."""
        return {rank: pid for rank, pid in self.pids.items() if exit_codes.get(rank) is None}

    def signal(self, number: Signals) -> None:
        """Send a signal to the ranks that have not ended, and to no other process."""
        ended = self._watcher.so_far()
        for rank, pid in self.pids.items():
            if rank not in ended:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def stop(self, grace_s: float, interrupts: Interrupts, say: Say) -> None:
        """End the ranks, and wait until all have ended: by SIGINT if the user has interrupted the job, then by SIGTERM, then
        by SIGKILL.

        Args:
            grace_s: between two signals.
            interrupts: if their number grows, the next signal is sent at once.
            say: prints a message for a user who waits.
        """
        signals = [Signals.SIGTERM, Signals.SIGKILL]
        if interrupts.count:
            signals.insert(0, Signals.SIGINT)
        for number, following in zip(signals, [*signals[1:], None], strict=True):
            limit_s = _KILL_TIMEOUT_S if following is None else grace_s
            if self._end_by(number, following, limit_s, interrupts, say):
                return

    def _end_by(self, number: Signals, following: Signals | None, limit_s: float, interrupts: Interrupts, say: Say) -> bool:
        """Send a signal, and wait; return whether all ranks have ended."""
        before = interrupts.count
        self.signal(number)

        def is_cut_short() -> bool:
            return interrupts.count > before

        has_user = before > 0 and following is not None
        if has_user and not self._wait(min(_PATIENCE_S, limit_s), is_cut_short) and not is_cut_short():
            assert following is not None
            left = formatting.ranges(self.alive(self.exit_codes()))
            say(f"{number.name} sent; waiting up to {limit_s:g} s for ranks {left} to end (Ctrl-C: {following.name} at once)")
        return self._wait(limit_s, is_cut_short)

    def ended_elsewhere_before(self, place: int) -> bool:
        """Whether a rank of another node has ended before the one with this place."""
        with self._placed:
            return place - 1 > sum(other < place for other in self._places.values())

    def exits(self) -> list[RankExit]:
        """How the ranks have ended, of those that have by now."""
        return [self._exit_of(rank, code) for rank, code in self.exit_codes().items() if code is not None]

    def final_exits(self) -> list[RankExit]:
        """The same once all have ended: their order is known then."""
        self._watcher.ended()
        return self.exits()

    def _wait(self, timeout_s: float, is_cut_short: Callable[[], bool]) -> bool:
        """Wait for all exit codes; return whether they are there in time."""
        deadline = time.monotonic() + timeout_s
        while None in self.exit_codes().values():
            if time.monotonic() > deadline or is_cut_short():
                return False
            time.sleep(_POLL_S)
        return True

    def _exit_of(self, rank: int, code: int) -> RankExit:
        run_dir, attempt = self._run_dir, self.attempt
        stacks, kept = node_dir.stacks_file(self._node_dir, rank), run_dir.stacks_file(attempt, rank)
        if stacks.exists() and -code in FAULTS:
            with contextlib.suppress(OSError):
                shutil.copy(stacks, kept)
        return read_rank_exit(
            rank,
            code,
            order=self._place_of(rank),
            host=socket.gethostname(),
            ended_at=self._watcher.time_of(rank),
            step=self._watch.last_step(rank),
            logs=(run_dir.log_file(attempt, rank, "stderr"), run_dir.log_file(attempt, rank, "stdout"), kept),
            error_files=(run_dir.error_file(attempt, rank), node_dir.error_file(self._node_dir, rank)),
            stacks=stacks,
        )

    def _place(self, rank: int) -> None:
        place = self._count_exit(self.attempt)
        with self._placed:
            self._places[rank] = place
            self._placed.notify_all()

    def _place_of(self, rank: int) -> int:
        """A rank's place in the order in which ranks have ended; behind all, if it is not known in time."""
        with self._placed:
            self._placed.wait_for(lambda: rank in self._places, _PLACE_TIMEOUT_S)
            return self._places.get(rank, _LAST)
