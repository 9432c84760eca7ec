"""The node directory: files in memory through which a node's ranks and their agent communicate.

The agent creates it and `MIMO_NODE_DIR` names it to the ranks. It exists as long as the agent does.
"""

import errno
import os
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from mimo_role.errors import ContextError

_MEMORY = Path("/dev/shm")  # noqa: S108 (a directory of our own is made there)
_FIXED_BYTES = 32 << 10
_BYTES_PER_RANK = 32 << 10
"""Heartbeat, facts, stacks and pending collectives."""


def create(agent_id: str, ranks: int) -> Path:
    """Make the node directory, in memory if there is room for the files of so many ranks. The reaper removes it.

    Raises:
        ContextError: it cannot be created.
    """
    problems = []
    for parent in dict.fromkeys((_MEMORY, Path(gettempdir()))):
        try:
            if _room(parent) < _FIXED_BYTES + ranks * _BYTES_PER_RANK:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # Containers that share the memory may have agents with equal ids.
            return Path(mkdtemp(prefix=f"mimo-{agent_id}-", dir=parent))
        except OSError as error:
            problems.append(f"{parent}: {error.strerror}")
    found = "; ".join(problems)
    raise ContextError(f"the node directory, for files that ranks and agent share, cannot be created: {found}; set TMPDIR")


def find(agent_id: str) -> Path | None:
    """The node directory of an agent that runs on this machine."""
    parents = dict.fromkeys((_MEMORY, Path(gettempdir())))
    return next((path for parent in parents for path in parent.glob(f"mimo-{agent_id}-*") if path.is_dir()), None)


def _room(directory: Path) -> int:
    """Bytes that files in a directory may take."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def clear(node_dir: Path) -> None:
    """Remove what the ranks of an earlier attempt have left. A preemption notice also holds for the next attempt."""
    for file in node_dir.iterdir() if node_dir.is_dir() else ():
        if file != notice_file(node_dir):
            file.unlink(missing_ok=True)


def notice_file(node_dir: Path) -> Path:
    """Exists once the ranks have received a preemption notice."""
    return node_dir / "notice"


def heartbeat_file(node_dir: Path, rank: int) -> Path:
    """A rank's progress, in shared memory."""
    return node_dir / f"rank{rank}.heartbeat"


def recording_file(node_dir: Path, rank: int) -> Path:
    """What a rank records of its steps, in shared memory."""
    return node_dir / f"rank{rank}.recording"


def stacks_file(node_dir: Path, rank: int) -> Path:
    """A rank's stacks: written on request, and after a crash in C."""
    return node_dir / f"rank{rank}.stacks"


def trace_request_pipe(node_dir: Path, rank: int) -> Path:
    """A named pipe; a write to it requests the rank's pending collectives."""
    return node_dir / f"rank{rank}.trace_request"


def traces_file(node_dir: Path, rank: int) -> Path:
    """The collectives in which a rank waits: written on request."""
    return node_dir / f"rank{rank}.traces.json"


def facts_file(node_dir: Path, rank: int) -> Path:
    """A rank's versions and devices, for the preflight check before it joins."""
    return node_dir / f"rank{rank}.facts.json"


def verdict_file(node_dir: Path) -> Path:
    """The result of the preflight check."""
    return node_dir / "verdict"


def terminal_lock(node_dir: Path) -> Path:
    """Locked by the rank that uses the terminal."""
    return node_dir / "terminal.lock"


def error_file(node_dir: Path, rank: int) -> Path:
    """The exception that ended a rank, where the run directory could not be written."""
    return node_dir / f"rank{rank}.error.json"
