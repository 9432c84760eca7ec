"""The order in which processes exit."""

import select
import threading
import time
from collections.abc import Callable
from os import close, pidfd_open


class ExitWatcher:
    """Watches processes and records the order in which they exit."""

    def __init__(self, pids: dict[int, int], on_exit: Callable[[int], object] = lambda _: None) -> None:
        """Start to watch.

        Args:
            pids: process ids by a key, such as the local rank.
            on_exit: called with the key of each process as soon as it has exited, in a thread.
        """
        self._order: list[int] = []
        self._times: dict[int, float] = {}
        self._on_exit = on_exit
        watched: dict[int, int] = {}
        gone: list[int] = []
        for key, pid in pids.items():
            try:
                watched[pidfd_open(pid)] = key
            except ProcessLookupError:
                self._note(key, time.time())
                gone.append(key)
        self._thread = threading.Thread(target=self._watch, args=(watched, gone), name="mimo-launch exits", daemon=True)
        self._thread.start()

    def ended(self) -> list[int]:
        """The keys of the processes, first to exit first. Call it once all have exited."""
        self._thread.join(timeout=5)
        return self.so_far()

    def so_far(self) -> list[int]:
        """The keys of the processes that have exited by now, first to exit first."""
        return list(self._order)

    def time_of(self, key: int) -> float:
        """When a process was seen to have exited, by `time.time()`; now, if it has not."""
        return self._times.get(key, time.time())

    def _watch(self, watched: dict[int, int], gone: list[int]) -> None:
        for key in gone:
            self._on_exit(key)
        poll = select.poll()
        for pidfd in watched:
            poll.register(pidfd, select.POLLIN)
        while watched:
            ready = poll.poll()
            now = time.time()
            for pidfd, _ in ready:
                poll.unregister(pidfd)
                close(pidfd)
                self._note(watched.pop(pidfd), now)
                self._on_exit(self._order[-1])

    def _note(self, key: int, now: float) -> None:
        self._times[key] = now
        self._order.append(key)
