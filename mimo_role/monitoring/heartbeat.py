"""Progress of each rank of a node, and whether it is joining: a few numbers in shared memory, which the agent polls."""

import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mimo_role.host import environ
from mimo_role.host.node_dir import heartbeat_file

_PROGRESS = struct.Struct("=qqqq")
"""Heartbeats, first and last step (-1: none), and whether the script numbers its steps."""
_JOINING = struct.Struct("=q")
"""Whether the rank is joining; behind its progress."""
_SIZE = _PROGRESS.size + _JOINING.size
_NONE = -1


@dataclass(frozen=True)
class Pulse:
    """Progress of one rank."""

    beats: int
    """Number of heartbeats; it grows as long as the rank makes progress."""
    first_step: int | None
    """The first step of this attempt."""
    last_step: int | None
    """The step in which the rank is, or was last."""
    is_numbered: bool = True
    """Whether the script numbers its steps, so that numbers continue over restarts; else they count from 0 in each attempt."""


class Heartbeat:
    """Written by a rank. A heartbeat takes about a microsecond."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the rank's heartbeat file; `None` without an agent."""
        self._path = path
        self._numbers: memoryview | None = None
        """Those of the file. An assignment is one store; `struct.pack_into` would first fill the place with zeros, which the
        agent could see."""
        self._beats = 0
        self._first, self._last = _NONE, _NONE
        self._script_counts = False
        self._is_numbered = False

    def step(self, number: int | None = None) -> None:
        """Record the start of a step of the script: the next, or the one with this number."""
        self._script_counts = True
        self._is_numbered = self._is_numbered or number is not None
        self._start_step(self._last + 1 if number is None else number)

    @property
    def script_step(self) -> int:
        """The script's current step; -1 if it does not call `step()`."""
        return self._last if self._script_counts else _NONE

    @property
    def last_step(self) -> int:
        """The step that began last, the script's or the schedule's; -1 before the first."""
        return self._last

    def scheduled_step(self) -> None:
        """Record the start of a step of the schedule. It counts as a step if the script does not report steps itself."""
        if self._script_counts:
            self.beat()
        else:
            self._start_step(self._last + 1)

    def beat(self) -> None:
        """Record progress within a step."""
        self._beats += 1
        if self._path is not None and self._numbers is None:
            memory = _open(self._path)
            # Opened once: if that fails, there is no heartbeat.
            self._path = self._path if memory is not None else None
            self._numbers = memoryview(memory).cast("q") if memory is not None else None
        if (numbers := self._numbers) is not None:
            numbers[1], numbers[2], numbers[3] = self._first, self._last, self._is_numbered
            numbers[0] = self._beats  # last: there is no pulse before it

    def _start_step(self, number: int) -> None:
        self._first = number if self._first == _NONE else self._first
        self._last = number
        self.beat()


def read_pulse(path: Path) -> Pulse | None:
    """The progress in a heartbeat file; `None` before the first heartbeat."""
    if (data := _read(path)) is None:
        return None
    beats, first, last, is_numbered = _PROGRESS.unpack_from(data)
    first, last = (None if step == _NONE else step for step in (first, last))
    return Pulse(beats, first, last, bool(is_numbered)) if beats else None


@contextmanager
def recorded_joining() -> Iterator[None]:
    """Record for this node's agent, if there is one, that this rank is joining, as long as the block lasts."""
    directory = environ.node_dir()
    rank = environ.rank() if directory is not None else None
    memory = _open(heartbeat_file(directory, rank)) if directory is not None and rank is not None else None
    if memory is None:
        yield
        return
    with closing(memory):
        _JOINING.pack_into(memory, _PROGRESS.size, 1)
        try:
            yield
        finally:
            _JOINING.pack_into(memory, _PROGRESS.size, 0)


def is_joining(path: Path) -> bool:
    """Whether a rank is joining, by its heartbeat file."""
    data = _read(path)
    return data is not None and _JOINING.unpack_from(data, _PROGRESS.size) != (0,)


def _read(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        return None
    return data if len(data) == _SIZE else None


def _open(path: Path) -> mmap.mmap | None:
    """The file's memory; `None` if the node directory is gone, or has no space left."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        # Allocated: writing to a hole of a full file system would end the process by SIGBUS.
        os.posix_fallocate(file, 0, _SIZE)
        return mmap.mmap(file, _SIZE)
    except OSError:
        return None
    finally:
        os.close(file)
