"""Ends every process that a mimo-launch started, also when it was killed itself.

Every process that it starts inherits `MIMO_AGENT_ID` in the environment that it was executed with, and keeps it through
double forks and new sessions. The warden, a small process in a session of its own, waits on a pipe that mimo-launch
holds; the pipe closes when mimo-launch ends, however it ends.

It runs as a plain file in a bare interpreter: it imports nothing but the standard library.
"""

import os
import signal
import sys
import time

AGENT_ID = "MIMO_AGENT_ID"
_PATIENCE_S = 10.0


def processes_of(agent_id: str) -> list[int]:
    """The live processes, other than this one, that were executed with the agent's id in their environment."""
    entry = f"{AGENT_ID}={agent_id}".encode()
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208 (pathlib would double this process's start-up)
        if name.isdigit() and int(name) != os.getpid() and entry in _environ(name).split(b"\0"):
            found.append(int(name))
    return found


def end_all(agent_id: str, spare: int | None = None) -> list[int]:
    """SIGKILL the run's processes until none is left; return those that would not die.

    The children of process `spare` are left alone.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while left := [pid for pid in processes_of(agent_id) if spare is None or _parent_of(pid) != spare]:
        if time.monotonic() > deadline:
            break
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)
    return left


def _parent_of(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return None


def _environ(pid: str) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:  # it has ended, or belongs to another user
        return b""


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    end_all(sys.argv[1])
