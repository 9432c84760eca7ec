"""The first failure of a run, told in role terms."""

import json
import select
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from os import close, pidfd_open
from pathlib import Path

from mimo_role import Topology

REQUEUED = "the ranks ended in order to be started again"


@dataclass(frozen=True)
class Failure:
    """How one rank ended when it should not have."""

    rank: int
    code: int
    """Its exit code; negative for the signal that ended it."""

    @property
    def exit_code(self) -> int:
        """The exit code of the job: the rank's own where it has one, else 1."""
        return self.code if self.code > 0 else 1

    def headline(self, topology: Topology) -> str:
        """Which rank, in which role, and how it ended."""
        return f"rank {self.rank} ({topology.label_of(self.rank)}) failed first: {_ending(self.code)}"

    def describe(self, topology: Topology, error_file: Path, logs: list[Path]) -> str:
        """A few lines: which rank, how it ended, what it raised, where its output is."""
        lines = [self.headline(topology)]
        if (message := _message(error_file)) is not None:
            lines += [f"  {line}" for line in message.splitlines()[:20]]
        written = [log for log in logs if log.exists() and log.stat().st_size]
        lines += [f"  its output: {log}" for log in written] or [f"  it wrote nothing; all ranks' output: {error_file.parent}"]
        return "\n".join(lines)


class ExitOrder:
    """Watches processes and notes the order in which they end."""

    def __init__(self, pids: dict[int, int], on_end: Callable[[int], object] | None = None) -> None:
        """Begin to watch.

        Args:
            pids: process ids by a key of the caller's, such as the local rank.
            on_end: called with the key of each process as soon as it has ended, in a thread.
        """
        self._order: list[int] = []
        self._on_end = on_end
        watched: dict[int, int] = {}
        for key, pid in pids.items():
            try:
                watched[pidfd_open(pid)] = key
            except ProcessLookupError:
                self._order.append(key)
        self._thread = threading.Thread(target=self._watch, args=(watched,), name="mimo-launch exits", daemon=True)
        self._thread.start()

    def ended(self) -> list[int]:
        """The keys of the processes, first to end first. Call it once all have ended."""
        self._thread.join(timeout=5)
        return self.so_far()

    def so_far(self) -> list[int]:
        """The keys of the processes that have ended by now."""
        return list(self._order)

    def _watch(self, watched: dict[int, int]) -> None:
        poll = select.poll()
        for pidfd in watched:
            poll.register(pidfd, select.POLLIN)
        while watched:
            for pidfd, _ in poll.poll():
                poll.unregister(pidfd)
                close(pidfd)
                self._order.append(watched.pop(pidfd))
                if self._on_end is not None:
                    self._on_end(self._order[-1])


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _message(error_file: Path) -> str | None:
    """What torchelastic's `record` wrote down of the exception."""
    try:
        value = json.loads(error_file.read_text(encoding="utf-8"))
        return str(value["message"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
