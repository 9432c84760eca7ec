"""Preemption notices: the warning that a job is about to be terminated.

A scheduler announces it by SIGTERM or SIGUSR1 to the job's processes; mimo-launch forwards both to the ranks. By default
SIGTERM ends a rank. After `listen()` either signal is a notice that the script can check between two steps; in a rank of
mimo-launch, which forwards Ctrl-C as SIGINT, that signal too.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from types import FrameType

from mimo_role.errors import MimoError

REQUEUE_EXIT_CODE = 75
"""A rank that exits with this code requests a requeue of the job: EX_TEMPFAIL of sysexits.h(3)."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

_SHIELD = "mimo_role.preemption.fork_server_shield"


@dataclass(frozen=True)
class Notice:
    """The job is about to be terminated."""

    signal: signal.Signals
    received_at: float
    """By `time.monotonic()`."""
    time_left_s: float | None
    """From then to the termination; `None` if unknown."""

    @property
    def seconds_left(self) -> float | None:
        """From now to the termination, at least 0; `None` if unknown."""
        return None if self.time_left_s is None else max(0.0, self.received_at + self.time_left_s - time.monotonic())


_notice: Notice | None = None
_listening = False


def listen(grace_s: float | None = None, warning_s: float | None = None, notice_file: Path | None = None) -> None:
    """Treat SIGTERM and SIGUSR1 as notices from now on. It does nothing if called again.

    With a `notice_file`, SIGINT is a notice too, unless the script handles it.

    Args:
        grace_s: seconds from SIGTERM or SIGINT to the termination.
        warning_s: seconds from SIGUSR1 to the termination.
        notice_file: exists if SIGUSR1 came before this process started; its modification time is when.

    Raises:
        MimoError: this is not the main thread, and Python handles signals there only.
    """
    global _listening, _notice
    if _listening:
        return
    if threading.current_thread() is not threading.main_thread():
        raise MimoError("listen() must run in the main thread, the only one in which Python handles signals")
    times = {signal.SIGTERM: grace_s, signal.SIGINT: grace_s, signal.SIGUSR1: warning_s}
    is_interruptible = notice_file is not None and signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def handle(number: int, _: FrameType | None) -> None:
        global _notice
        new = Notice(signal.Signals(number), time.monotonic(), times[signal.Signals(number)])
        # SIGTERM after SIGUSR1 may shorten the time that is left.
        if _notice is None or (new.seconds_left or 0.0) < (_notice.seconds_left or 0.0):
            _notice = new

    for number in (*SIGNALS, signal.SIGINT) if is_interruptible else SIGNALS:
        signal.signal(number, handle)
    _listening = True
    with suppress(OSError):
        if notice_file is not None:
            since = time.time() - notice_file.stat().st_mtime
            _notice = Notice(signal.SIGUSR1, time.monotonic() - since, warning_s)


def notice() -> Notice | None:
    """The notice that this process received, if any; of several, the one that leaves the least time."""
    return _notice


def shield_worker(_worker_id: int = 0) -> None:
    """Ignore notices in a helper process: `DataLoader(..., worker_init_fn=mimo_role.shield_worker)`.

    A scheduler signals every process of a job, data-loader workers too, whose exit would end the rank before it has saved.
    SIGTERM from the process that started the worker still ends it: a data loader, and multiprocessing at exit, terminate
    workers this way. With the start method `forkserver`, the default from Python 3.14 on, this is not the worker's parent.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # A handler in Python does not get the sender of a signal; waiting for a blocked signal does.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_exit_on_sigterm_of_starter, name="mimo_role shield", daemon=True).start()


def _exit_on_sigterm_of_starter() -> None:
    starter = multiprocessing.parent_process()
    known = set() if starter is None else {starter.pid}
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid not in known | {os.getppid()}:
        continue
    os._exit(0)


def shield_fork_server() -> None:
    """Let multiprocessing's fork server ignore notices, if this process starts one later.

    From Python 3.14 on it starts workers by default. The workers of a server that has died count as dead.
    """
    modules: list[str] = getattr(forkserver._forkserver, "_preload_modules", ["__main__"])
    if _SHIELD not in modules:
        multiprocessing.set_forkserver_preload([*modules, _SHIELD])
