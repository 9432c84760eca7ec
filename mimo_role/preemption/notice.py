"""The warning that a job is about to be ended, and what a process does about it.

A scheduler announces the end of a job by SIGTERM or SIGUSR1 to its processes; mimo-launch passes both on to the ranks. By
default SIGTERM ends a rank. After `listen()` either is a notice that the script can look at between two steps.
"""

import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mimo_role.errors import MimoError

REQUEUE_EXIT_CODE = 75
"""A rank that ends with it asks to be started again: EX_TEMPFAIL of sysexits.h(3)."""

NOTICE = "notice"
"""A file of this name in the folder that a node's ranks share with their launcher says that they have been warned."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Notice:
    """The job is about to be ended."""

    signal: signal.Signals
    came: float
    """When it was heard, by `time.monotonic()`."""
    time_left_s: float | None
    """From then to the end; `None` if nothing tells."""

    @property
    def seconds_left(self) -> float | None:
        """From now to the end, never less than 0; `None` if nothing tells."""
        return None if self.time_left_s is None else max(0.0, self.came + self.time_left_s - time.monotonic())


_heard: Notice | None = None
_listening = False


def listen(grace_s: float | None = None, warning_s: float | None = None, notice_file: Path | None = None) -> None:
    """Take SIGTERM and SIGUSR1 as notices from now on. Called again, it changes nothing.

    Args:
        grace_s: seconds from SIGTERM to the end.
        warning_s: seconds from SIGUSR1 to the end.
        notice_file: exists if SIGUSR1 came before, since when it was last written.

    Raises:
        MimoError: not in the main thread, where alone Python hears signals.
    """
    global _listening, _heard
    if _listening:
        return
    if threading.current_thread() is not threading.main_thread():
        raise MimoError("notices are listened for in the main thread, the only one that hears signals")
    times = {signal.SIGTERM: grace_s, signal.SIGUSR1: warning_s}

    def hear(number: int, _: FrameType | None) -> None:
        global _heard
        heard = Notice(signal.Signals(number), time.monotonic(), times[signal.Signals(number)])
        # SIGTERM in the time that SIGUSR1 has announced ends the job sooner.
        if _heard is None or (heard.seconds_left or 0.0) < (_heard.seconds_left or 0.0):
            _heard = heard

    for number in SIGNALS:
        signal.signal(number, hear)
    _listening = True
    with suppress(OSError):
        if notice_file is not None:
            since = time.time() - notice_file.stat().st_mtime
            _heard = Notice(signal.SIGUSR1, time.monotonic() - since, warning_s)


def notice() -> Notice | None:
    """The notice that this process heard, if any; of several the one that leaves the least time."""
    return _heard


def shield_worker(_worker_id: int = 0) -> None:
    """Let notices pass by a helper process: `DataLoader(..., worker_init_fn=mimo_role.shield_worker)`.

    A scheduler signals every process of a job, data-loader workers too, whose death would end the rank before it has saved.
    SIGTERM from the worker's own parent still ends it: that is how a loader, and multiprocessing at exit, end theirs.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A handler in Python is not told who has sent a signal; waiting for a blocked one is.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_for_the_parent, name="mimo_role shield", daemon=True).start()


def _end_for_the_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        continue
    os._exit(0)
