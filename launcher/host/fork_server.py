"""multiprocessing's helper processes: the fork server that ranks are forked from, and the resource tracker.

The two `ensure_running` functions start the helpers without a first child; they are not documented. The server's process id
is private. `tests/launcher/host/test_fork_server.py` fails if any of it changes.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker

from launcher.host.reaper import state_of

_INTERVAL_S = 1.0
_STOPPED_POLLS = 5
"""Polls before a stopped fork server is killed: exit codes and new ranks depend on it."""


def start_tracker() -> None:
    """Start the resource tracker. It must outlive the run's processes, so it must not inherit their agent id: call it first."""
    resource_tracker.ensure_running()


def start() -> None:
    """Start the fork server, and return while it still imports torch."""
    multiprocessing.set_forkserver_preload(["launcher.worker.preload"])
    forkserver.ensure_running()
    threading.Thread(target=_kill_if_stopped, name="mimo-launch fork server", daemon=True).start()


def has_died() -> bool:
    """Whether the server was started and has exited: the exit codes of its ranks are then unknown."""
    pid = _pid()
    return pid is not None and state_of(pid) in ("", "Z")


def _kill_if_stopped() -> None:
    stopped = 0
    while True:
        time.sleep(_INTERVAL_S)
        pid = _pid()
        stopped = stopped + 1 if pid is not None and state_of(pid) == "T" else 0
        if stopped > _STOPPED_POLLS and pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _pid() -> int | None:
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid
