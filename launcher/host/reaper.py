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
_LOOK_S = 0.01


def processes_of(agent_id: str) -> list[int]:
    """The live processes, other than this one, that were executed with the agent's id in their environment."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_of(agent_id, int(name))]  # noqa: PTH208 (pathlib would double this process's start-up)


def end_all(agent_id: str, grace_s: float, spare: int | None = None) -> list[int]:
    """SIGTERM the run's processes, and SIGKILL those that outlive the grace time; return those that would not die.

    One that ignores SIGTERM has no use for the grace time and is killed at once. Children of process `spare` are left alone.
    """
    asked: set[int] = set()
    began = time.monotonic()
    while left := [pid for pid in processes_of(agent_id) if spare is None or _parent_of(pid) != spare]:
        waited = time.monotonic() - began
        if waited > grace_s + _PATIENCE_S:
            break
        for pid in left:
            if waited > grace_s or does_with(pid, signal.SIGTERM, "SigIgn"):
                _send(agent_id, pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                _send(agent_id, pid, signal.SIGTERM)
                # One that is stopped hears it when it goes on.
                _send(agent_id, pid, signal.SIGCONT)
        time.sleep(_LOOK_S)
    return left


def describe(pid: int) -> str:
    """A process in words."""
    return f"process {pid} ({_read(pid, 'comm').decode(errors='replace').strip() or '?'})"


def _send(agent_id: str, pid: int, number: int) -> None:
    """Signal a process, and never another one that has got its number since."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if _is_of(agent_id, pid):
            signal.pidfd_send_signal(process, number)
    except OSError:
        return
    finally:
        os.close(process)


def _is_of(agent_id: str, pid: int) -> bool:
    return pid != os.getpid() and f"{AGENT_ID}={agent_id}".encode() in _read(pid, "environ").split(b"\0")


def _parent_of(pid: int) -> int | None:
    stat = _read(pid, "stat")
    return int(stat.rpartition(b")")[2].split()[1]) if stat else None


def does_with(pid: int, number: int, kind: str) -> bool:
    """Whether a process ignores (`SigIgn`) or catches (`SigCgt`) a signal; see proc(5)."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(kind.encode()):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:  # it has ended, or belongs to another user
        return b""


def _remove(folder: str) -> None:
    try:
        for name in os.listdir(folder):  # noqa: PTH208
            os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
        os.rmdir(folder)  # noqa: PTH106
    except OSError:
        return


def clean_up(agent_id: str, grace_s: float, folder: str) -> None:
    """End what a mimo-launch has left, and remove the folder of its node."""
    if left := end_all(agent_id, grace_s):
        sys.stderr.write(f"mimo-launch: would not die: {', '.join(map(describe, left))}\n")
    _remove(folder)


def main(agent_id: str, grace_s: str, folder: str) -> None:
    """Wait for the end of mimo-launch, and clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean_up(agent_id, float(grace_s), folder)


if __name__ == "__main__":
    main(*sys.argv[1:4])
