"""Debuggers in ranks: pdb at the terminal of mimo-launch, one rank after the other, and debugpy over a port.

The output of a rank goes to its log files, and the terminal is for all. While a rank's pdb waits for commands, its standard
streams are the terminal; a lock in the node directory lets one rank at a time have it. `breakpoint()`, `pdb.set_trace()`,
`pdb.post_mortem()` and `torch.distributed.breakpoint()` all end in `pdb.Pdb.interaction`.
"""

import fcntl
import os
import pdb
import sys
from bdb import BdbQuit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mimo_role.host import environ, node_dir

_HOST = "127.0.0.1"


def offer_terminal(label: str, *, allowed: bool, is_only: bool) -> None:
    """Let debuggers of this process use the terminal from which mimo-launch was started.

    Args:
        label: of this rank, for messages.
        allowed: whether it may. If not, or if there is no terminal, a breakpoint raises an exception that names the cure.
        is_only: whether no other rank may.
    """
    original: Callable[..., Any] = pdb.Pdb.interaction

    def interaction(self: pdb.Pdb, frame: FrameType | None, *arguments: Any, **more: Any) -> Any:
        if not allowed or not _is_terminal():
            self.set_quit()
            raise BdbQuit(_cure())
        with _terminal(None if is_only else label):
            return original(self, frame, *arguments, **more)

    pdb.Pdb.interaction = interaction  # type: ignore[method-assign]


def wait_for_debugger(label: str, port: int) -> None:
    """Listen for a debugger of the Debug Adapter Protocol, such as that of VS Code, and wait until one has connected.

    Raises:
        ImportError: debugpy is not installed.
        RuntimeError: the port is in use.
    """
    import debugpy

    debugpy.listen((_HOST, port))
    sys.stderr.write(f"mimo-launch: {label} waits for a debugger (debugpy) at {_HOST}:{port}\n")
    debugpy.wait_for_client()


def _is_terminal() -> bool:
    try:
        return os.isatty(0)
    except OSError:
        return False


def _cure() -> str:
    return (
        f"a breakpoint in rank {environ.rank()}, which has no terminal. Start the job at a terminal by "
        f"`mimo-launch run --debug {environ.rank()} ...`, or use `--debug-port`"
    )


@contextmanager
def _terminal(heading: str | None) -> Iterator[None]:
    """Make the terminal the standard streams of this process, as soon as no other rank uses it."""
    directory = environ.node_dir()
    lock = os.open(node_dir.terminal_lock(directory) if directory is not None else os.devnull, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    kept = [os.dup(number) for number in range(3)]
    terminal = _open_terminal()
    try:
        _switch([terminal] * 3)
        if heading is not None:
            os.write(1, f"mimo-launch: {heading} has the terminal\n".encode())
        yield
    finally:
        _switch(kept)
        for descriptor in (*kept, terminal, lock):
            os.close(descriptor)


def _open_terminal() -> int:
    try:
        return os.open(Path(os.ttyname(0)), os.O_RDWR | os.O_NOCTTY)
    except OSError:  # a terminal of another mount namespace has no name here
        return os.dup(0)


def _switch(descriptors: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
