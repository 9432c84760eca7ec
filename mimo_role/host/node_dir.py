"""The node directory: files in memory through which a node's ranks and their agent communicate.

The agent creates it and `MIMO_NODE_DIR` names it to the ranks. It exists as long as the agent does.
"""

import os
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from mimo_role.errors import ContextError

_MEMORY = Path("/dev/shm")  # noqa: S108 (a directory of our own is made there)


def create(agent_id: str) -> Path:
    """Make the node directory. The reaper removes it.

    Raises:
        ContextError: it cannot be created.
    """
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(gettempdir())
    try:
        # Containers that share the memory may have agents with equal ids.
        return Path(mkdtemp(prefix=f"mimo-{agent_id}-", dir=parent))
    except OSError as error:
        raise ContextError(f"{parent}: {error.strerror}; the node directory for ranks and agent is created there") from None


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


def error_file(node_dir: Path, rank: int) -> Path:
    """The exception that ended a rank, where the run directory could not be written."""
    return node_dir / f"rank{rank}.error.json"
