"""multiprocessing's helper processes: the fork server that ranks are forked from, and the resource tracker.

The two `ensure_running` functions have no documentation; starting the helpers without a first child is what they are for. The
server's process id is private. `tests/launcher/test_pieces.py` fails if any of it changes.
"""

import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker

from launcher.host.resources import state_of

_LOOK_S = 1.0
_LOOKS = 5
"""For so many looks a stopped server is waited for: exit codes and new ranks come through it."""


def start_tracker() -> None:
    """Start the resource tracker, which must outlive the run's processes: call it before they have a run id to inherit."""
    resource_tracker.ensure_running()


def start() -> None:
    """Start the fork server, and return while it is still importing torch."""
    multiprocessing.set_forkserver_preload(["launcher.worker.preload"])
    forkserver.ensure_running()
    threading.Thread(target=_end_if_stopped, name="mimo-launch fork server", daemon=True).start()


def has_died() -> bool:
    """Whether there was a server, and it has ended: then nobody knows how its ranks end."""
    pid = _pid()
    return pid is not None and state_of(pid) in ("", "Z")


def _end_if_stopped() -> None:
    stopped = 0
    while True:
        time.sleep(_LOOK_S)
        pid = _pid()
        stopped = stopped + 1 if pid is not None and state_of(pid) == "T" else 0
        if stopped > _LOOKS and pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _pid() -> int | None:
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid
