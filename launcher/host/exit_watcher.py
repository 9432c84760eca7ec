"""In which order processes end."""

import select
import threading
import time
from collections.abc import Callable
from os import close, pidfd_open


class ExitWatcher:
    """Watches processes and notes the order in which they end."""

    def __init__(self, pids: dict[int, int], on_end: Callable[[int], object] | None = None) -> None:
        """Begin to watch.

        Args:
            pids: process ids by a key of the caller's, such as the local rank.
            on_end: called with the key of each process as soon as it has ended, in a thread.
        """
        self._order: list[int] = []
        self._times: dict[int, float] = {}
        self._on_end = on_end
        watched: dict[int, int] = {}
        for key, pid in pids.items():
            try:
                watched[pidfd_open(pid)] = key
            except ProcessLookupError:
                self._note(key)
        self._thread = threading.Thread(target=self._watch, args=(watched,), name="mimo-launch exits", daemon=True)
        self._thread.start()

    def ended(self) -> list[int]:
        """The keys of the processes, first to end first. Call it once all have ended."""
        self._thread.join(timeout=5)
        return self.so_far()

    def so_far(self) -> list[int]:
        """The keys of the processes that have ended by now."""
        return list(self._order)

    def time_of(self, key: int) -> float:
        """When a process was seen to have ended, by `time.time()`; now, if it has not."""
        return self._times.get(key, time.time())

    def _watch(self, watched: dict[int, int]) -> None:
        poll = select.poll()
        for pidfd in watched:
            poll.register(pidfd, select.POLLIN)
        while watched:
            for pidfd, _ in poll.poll():
                poll.unregister(pidfd)
                close(pidfd)
                self._note(watched.pop(pidfd))
                if self._on_end is not None:
                    self._on_end(self._order[-1])

    def _note(self, key: int) -> None:
        self._times[key] = time.time()
        self._order.append(key)
