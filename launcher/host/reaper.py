"""Ends every process that a mimo-launch started, even if mimo-launch itself was killed.

The reaper is a small process in its own session, and the ancestor of all ranks: mimo-launch starts it, and it starts the
fork server. The kernel makes it the parent of every process below it that loses its own (`PR_SET_CHILD_SUBREAPER`, see
prctl(2)), whatever a process does to its session, its environment or its name. It waits on a pipe that mimo-launch holds
open; the pipe closes when mimo-launch exits, for whatever reason.

If the reaper itself is killed, mimo-launch becomes the parent, and ends the processes. Processes that were started beside
this tree are known by `MIMO_AGENT_ID` in their initial environment.

It is started by its path in an isolated interpreter, so it imports the standard library only.
"""

import os
import signal
import sys
import time
from collections.abc import Collection

AGENT_ID = "MIMO_AGENT_ID"
_PR_SET_CHILD_SUBREAPER = 36
_KILL_TIMEOUT_S = 10.0
"""How long to wait for processes after SIGKILL."""
_INTERVAL_S = 0.01
_THREADS = 17
"""The number of threads among the fields of `_stat`; see proc(5)."""


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    import ctypes  # late: the fork server is started first

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def processes_of(agent_id: str, root: int | None = None) -> list[int]:
    """The live processes of a run, other than this one: those below `root`, and those with the agent's id in their
    initial environment."""
    own = os.getpid()
    found = _all_processes()
    below = _below(root, found) if root is not None else set()
    live = (pid for pid, (_, is_live) in found.items() if is_live and pid != own)
    return [pid for pid in live if pid in below or _has_mark(agent_id, pid)]


def end_all(
    agent_id: str, grace_s: float, root: int | None = None, spare: Collection[int] = (), *, children_are_reaped: bool = False
) -> list[int]:
    """SIGTERM a run's processes, and SIGKILL those that remain after the grace time; return those that could not be killed.

    One that ignores SIGTERM is killed at once, but for Python's resource trackers: they end when the processes that they belong
    to have ended, and remove the shared memory that these have left.

    Args:
        agent_id: of the run.
        grace_s: the grace time.
        root: the process that all others are below.
        spare: processes to leave alone.
        children_are_reaped: whether this process is the root, and reaps its children. It then waits until it has none, which
            the kernel knows for certain: a process that has just been forked can be missing in /proc's listing.
    """
    asked: set[int] = set()
    began = time.monotonic()
    while True:
        left = [pid for pid in processes_of(agent_id, root) if pid not in spare]
        waited = time.monotonic() - began
        is_done = not left and not (children_are_reaped and _has_children())
        if is_done or waited > grace_s + _KILL_TIMEOUT_S:
            return left
        for pid in left:
            if waited > grace_s or (_signal_bit(pid, "SigIgn", signal.SIGTERM) and not _is_resource_tracker(pid)):
                _send(agent_id, root, pid, signal.SIGKILL)
            elif pid not in asked and _send(agent_id, root, pid, signal.SIGTERM):
                asked.add(pid)
                # A stopped process handles it once it continues.
                _send(agent_id, root, pid, signal.SIGCONT)
        time.sleep(_INTERVAL_S)


def describe(pid: int) -> str:
    """A process with its name, for messages."""
    return f"process {pid} ({_read(pid, 'comm').decode(errors='replace').strip() or '?'})"


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 (pathlib would double this process's start-up)


def _all_processes() -> dict[int, tuple[int, bool]]:
    """The parent of each process, and whether it is live.

    They are read one after the other. A parent that has ended meanwhile has left its children to another process: theirs is
    read again, or they would seem to be below nothing. A zombie has left its children, too, but its own parent is known.
    """
    found = {pid: process for pid in _pids() if (process := _parent_and_life(pid))}
    for pid in [pid for pid, (parent, _) in found.items() if parent not in found]:
        if process := _parent_and_life(pid):
            found[pid] = process
    return found


def _parent_and_life(pid: int) -> tuple[int, bool] | None:
    fields = _stat(pid)
    # The first thread of a process can end before the others do; it is a zombie then.
    return (int(fields[1]), fields[0] != "Z" or int(fields[_THREADS]) > 1) if fields else None


def _below(root: int, processes: dict[int, tuple[int, bool]]) -> set[int]:
    """The processes below one."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in processes.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    new = [root]
    while new:
        new = [child for pid in new for child in children.get(pid, ()) if child not in found]
        found.update(new)
    return found


def _send(agent_id: str, root: int | None, pid: int, number: int) -> bool:
    """Signal a process, but not another one that has since been given the same id; return whether it was sent."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        is_ours = (root is not None and _is_below(root, pid)) or _has_mark(agent_id, pid)
        if is_ours:
            signal.pidfd_send_signal(process, number)
        return is_ours
    except OSError:
        return False
    finally:
        os.close(process)


def _is_below(root: int, pid: int) -> bool:
    while pid > 1 and (fields := _stat(pid)):
        pid = int(fields[1])
        if pid == root:
            return True
    return False


def _has_children() -> bool:
    """Whether this process has a child, be it a zombie."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _has_mark(agent_id: str, pid: int) -> bool:
    return f"{AGENT_ID}={agent_id}".encode() in _read(pid, "environ").split(b"\0")


def state_of(pid: int) -> str:
    """The kernel's letter for a process: R running, S sleeping, D waiting for a device, T stopped, Z zombie; else empty."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    return _signal_bit(pid, "SigCgt", number)


def _is_resource_tracker(pid: int) -> bool:
    return b"multiprocessing.resource_tracker" in _read(pid, "cmdline")


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


def clean_up(agent_id: str, grace_s: float, directory: str, *, children_are_reaped: bool = False) -> None:
    """End the processes that a mimo-launch has left, those below this process among them, and remove its node directory."""
    if left := end_all(agent_id, grace_s, os.getpid(), children_are_reaped=children_are_reaped):
        sys.stderr.write(f"mimo-launch: could not kill: {', '.join(map(describe, left))}\n")
    _remove(directory)


def _start_server(control: int, command: list[str]) -> None:
    try:
        is_server = os.fork() == 0
    except OSError as error:
        sys.exit(f"mimo-launch: the fork server: {error.strerror}; see ulimit -u, and pids.max of the container")
    if is_server:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(command[0], command)
    os.close(control)


def _reap(*_: object) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def job(grace_s: float, directory: str) -> bytes:
    """What mimo-launch writes to the reaper's standard input, once it knows the job.

    Args:
        grace_s: between SIGTERM and SIGKILL.
        directory: the node directory.
    """
    return os.fsencode(f"{grace_s}\0{directory}")


def main(agent_id: str, control: str, *command: str) -> None:
    """Start the fork server, wait until mimo-launch exits, and clean up.

    Args:
        agent_id: of the run.
        control: the descriptor of the fork server's socket.
        command: the fork server's.
    """
    _start_server(int(control), list(command))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, _reap)
    adopt_orphans()
    _reap()
    grace_s, _, directory = os.fsdecode(sys.stdin.buffer.read()).partition("\0")
    if directory:
        clean_up(agent_id, float(grace_s), directory, children_are_reaped=True)
    else:  # mimo-launch has ended before it knew the job: the fork server has started nothing
        end_all(agent_id, 0.0, os.getpid(), children_are_reaped=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
