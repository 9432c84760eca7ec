"""How far each rank of a node has come: a few numbers in shared memory, which its launcher looks at now and then."""

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

_LAYOUT = struct.Struct("=qqqq")
"""Beats, first and last step (-1: none), and whether the script numbers them."""
_NONE = -1


@dataclass(frozen=True)
class Pulse:
    """What a rank has said of its progress."""

    beats: int
    """A number that grows as long as it makes progress."""
    first_step: int | None
    """The step that it came to first."""
    last_step: int | None
    is_numbered: bool = True
    """Whether the script gives its steps numbers, which go on over restarts; else they are counted from the start."""


class Heartbeat:
    """The writing side, in a rank. A beat takes about a microsecond."""

    def __init__(self, path: Path | None) -> None:
        """`path` is the rank's file; `None` where nobody looks."""
        self._path = path
        self._memory: mmap.mmap | None = None
        self._beats = 0
        self._first, self._last = _NONE, _NONE
        self._script_counts = False
        self._is_numbered = False

    def step(self, number: int | None = None) -> None:
        """The script has come to a step: the next, or the one with this number."""
        self._script_counts = True
        self._is_numbered = self._is_numbered or number is not None
        self._come_to(self._last + 1 if number is None else number)

    @property
    def script_step(self) -> int | None:
        """The step that the script has come to; `None` if it does not call `step()`."""
        return self._last if self._script_counts else None

    def scheduled_step(self) -> None:
        """The schedule has come to its next step, which counts unless the script counts for itself."""
        if self._script_counts:
            self.beat()
        else:
            self._come_to(self._last + 1)

    def beat(self) -> None:
        """There is progress within a step."""
        self._beats += 1
        if self._path is not None and self._memory is None:
            self._memory = _open(self._path)
            # Where it cannot be told, nobody looks.
            self._path = self._path if self._memory is not None else None
        if self._memory is not None:
            _LAYOUT.pack_into(self._memory, 0, self._beats, self._first, self._last, self._is_numbered)

    def _come_to(self, number: int) -> None:
        self._first = number if self._first == _NONE else self._first
        self._last = number
        self.beat()


def beat_file(folder: Path, rank: int) -> Path:
    """A rank's file in the folder that a node's ranks share with their launcher."""
    return folder / f"rank{rank}.beat"


def read_pulse(path: Path) -> Pulse | None:
    """What a rank has said; `None` before it has."""
    try:
        beats, first, last, is_numbered = _LAYOUT.unpack(path.read_bytes())
    except (OSError, struct.error):
        return None
    first, last = (None if step == _NONE else step for step in (first, last))
    return Pulse(beats, first, last, bool(is_numbered)) if beats else None


def _open(path: Path) -> mmap.mmap | None:
    """The file's memory; `None` if its folder has gone, or has no space left."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        # Not a hole: writing to one in a full folder would be deadly.
        os.posix_fallocate(file, 0, _LAYOUT.size)
        return mmap.mmap(file, _LAYOUT.size)
    except OSError:
        return None
    finally:
        os.close(file)
