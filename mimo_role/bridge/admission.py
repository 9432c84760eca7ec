"""A lock that can postpone work until it is released."""

import threading
from collections.abc import Callable
from types import TracebackType


class Admission:
    """A reentrant lock. Postponed work runs when the thread that holds the lock releases it."""

    def __init__(self, run_postponed: Callable[[Callable[[], None]], None]) -> None:
        """`run_postponed` gets each piece of postponed work, with the lock held."""
        self._run_postponed = run_postponed
        self._lock = threading.RLock()
        self._depth = 0
        self._postponed: list[Callable[[], None]] = []

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while kind is None and self._depth == 1 and self._postponed:
                self._run_postponed(self._postponed.pop(0))
        finally:
            self._depth -= 1
            self._lock.release()

    def when_free(self, work: Callable[[], None]) -> None:
        """Run work now, or when the thread that holds the lock releases it. For garbage collection, which may run anywhere."""
        self._postponed.append(work)
        if self._lock.acquire(blocking=False):
            try:
                if self._depth == 0:
                    with self:
                        pass
            finally:
                self._lock.release()

    def reset(self) -> None:
        """Make a new lock, in a forked process in which the thread that held it does not exist."""
        self._lock = threading.RLock()
