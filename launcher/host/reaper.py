"""Ends every process that a mimo-launch started, even if mimo-launch itself was killed.

Every process that mimo-launch starts inherits `MIMO_AGENT_ID` in its initial environment, also across double forks and new
sessions. The reaper, a small process in its own session, waits on a pipe that mimo-launch holds open; the pipe closes when
mimo-launch exits, for whatever reason.

It is started by its path in an isolated interpreter, so it imports the standard library only.
"""

import os
import signal
import sys
import time

AGENT_ID = "MIMO_AGENT_ID"
_KILL_TIMEOUT_S = 10.0
"""How long to wait for processes after SIGKILL."""
_INTERVAL_S = 0.01


def processes_of(agent_id: str) -> list[int]:
    """The live processes, other than this one, with the agent's id in their initial environment."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _is_of(agent_id, int(name))]  # noqa: PTH208 (pathlib would double this process's start-up)


def end_all(agent_id: str, grace_s: float, spare: int | None = None) -> list[int]:
    """SIGTERM the run's processes, and SIGKILL those that remain after the grace time; return those that could not be killed.

    One that ignores SIGTERM is killed at once. Children of process `spare` are left alone.
    """
    asked: set[int] = set()
    began = time.monotonic()
    while left := [pid for pid in processes_of(agent_id) if spare is None or _parent_of(pid) != spare]:
        waited = time.monotonic() - began
        if waited > grace_s + _KILL_TIMEOUT_S:
            break
        for pid in left:
            if waited > grace_s or _signal_bit(pid, "SigIgn", signal.SIGTERM):
                _send(agent_id, pid, signal.SIGKILL)
            elif pid not in asked:
                asked.add(pid)
                _send(agent_id, pid, signal.SIGTERM)
                # A stopped process handles it once it continues.
                _send(agent_id, pid, signal.SIGCONT)
        time.sleep(_INTERVAL_S)
    return left


def describe(pid: int) -> str:
    """A process with its name, for messages."""
    return f"process {pid} ({_read(pid, 'comm').decode(errors='replace').strip() or '?'})"


def _send(agent_id: str, pid: int, number: int) -> None:
    """Signal a process, but not another one that has since been given the same id."""
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
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def state_of(pid: int) -> str:
    """The kernel's letter for a process: R running, S sleeping, D waiting for a device, T stopped, Z zombie; else empty."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    return _signal_bit(pid, "SigCgt", number)


def _signal_bit(pid: int, mask: str, number: int) -> bool:
    """Whether a signal is in one of the masks in /proc/PID/status; see proc(5)."""
    for line in _read(pid, "status").splitlines():
        if line.startswith(mask.encode()):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if there is no such process."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123
            return file.read()
    except OSError:  # it has exited, or belongs to another user
        return b""


def _remove(directory: str) -> None:
    try:
        for name in os.listdir(directory):  # noqa: PTH208
            os.unlink(os.path.join(directory, name))  # noqa: PTH108, PTH118
        os.rmdir(directory)  # noqa: PTH106
    except OSError:
        return


def clean_up(agent_id: str, grace_s: float, directory: str) -> None:
    """End the processes that a mimo-launch has left, and remove its node directory."""
    if left := end_all(agent_id, grace_s):
        sys.stderr.write(f"mimo-launch: could not kill: {', '.join(map(describe, left))}\n")
    _remove(directory)


def main(agent_id: str, grace_s: str, directory: str) -> None:
    """Wait until mimo-launch exits, and clean up."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean_up(agent_id, float(grace_s), directory)


if __name__ == "__main__":
    main(*sys.argv[1:4])
