"""The memory of one rank's recording: written by the rank without a lock that a reader could hold, read by other processes."""

import mmap
import os
import time
from contextlib import closing
from pathlib import Path
from threading import RLock
from typing import TypeAlias

from mimo_role.monitoring.records import (
    COUNTS,
    COUNTS_AT,
    DEPTH,
    DEPTH_AT,
    FIXED,
    MAGIC,
    MAX_NAMES,
    MAX_OPEN,
    NAME_BYTES,
    NAMES_AT,
    NONE,
    OPEN_AT,
    RECORD,
    RECORDS_AT,
    Kind,
    Recording,
    parse,
)

LARGEST_BYTES = 4 << 20
"""64,959 records: two minutes of 10 steps per second with 50 records each."""
SMALLEST_BYTES = RECORDS_AT + (64 << 10)
SHARE = 8
"""All ranks of a node together take at most this part of what is free: containers often have 64 MiB in /dev/shm, which data
loaders need too."""
_COUNTS = slice(COUNTS_AT, COUNTS_AT + COUNTS.size)
_DEPTH = slice(DEPTH_AT, DEPTH_AT + DEPTH.size)
_OPEN = slice(DEPTH_AT, OPEN_AT + MAX_OPEN * RECORD.size)
_BEFORE_OPEN = OPEN_AT - RECORD.size
_TRIES = 100
OTHER_NAMES = "(further names)"
_RECORD_BYTES = RECORD.size
_pack_record = RECORD.pack_into
_COUNT, _NAMES, _LOST_NAMES, _LOST, _CHANGES, _DEPTH_NOW = range(COUNTS_AT // 8, (DEPTH_AT + DEPTH.size) // 8)
"""The places of the counts among the numbers of 8 bytes."""

What: TypeAlias = tuple[Kind, int, int, int, int]
"""Of a record: its kind, the number of its name, its first micro-batch and their number, and the peer."""


def what(kind: Kind, name: int = 0, micro_batch: int = NONE, micro_batches: int = 0, peer: int = NONE) -> What:
    """The same, with nothing where there is nothing."""
    return kind, name, micro_batch, micro_batches, peer


class Ring:
    """Written by one process; its threads may all write."""

    def __init__(self, memory: mmap.mmap, rank: int) -> None:
        self._memory = memory
        self._numbers = memoryview(memory)[:OPEN_AT].cast("q")
        """What is before the open spans. An assignment is one store; `struct.pack_into` would first fill the place with zeros,
        which a reader could see."""
        self._capacity = (len(memory) - RECORDS_AT) // RECORD.size
        self._lock = RLock()
        """Among the threads of this process: it is held for a microsecond, in which a signal's handler may write too."""
        self.names: dict[str, int] = {}
        """Their numbers; `name_of` adds those that are missing."""
        self._count = self._lost_names = self._lost = self._depth = self._changes = 0
        fixed = FIXED.pack(MAGIC, self._capacity, rank, time.monotonic_ns(), time.time_ns())
        memory[len(MAGIC) : FIXED.size] = fixed[len(MAGIC) :]
        self.name_of(OTHER_NAMES)
        memory[: len(MAGIC)] = MAGIC  # last: with it, the rest is there

    @classmethod
    def create(cls, path: Path, rank: int, ranks: int) -> "Ring | None":
        """Make the file; `None` if there is no directory, or too little memory.

        Args:
            path: of the file.
            rank: this process's.
            ranks: how many ranks of this node make one.
        """
        try:
            found = os.statvfs(path.parent)
            size = min(LARGEST_BYTES, found.f_bavail * found.f_frsize // (SHARE * ranks))
            if size < SMALLEST_BYTES:
                return None
            path.unlink(missing_ok=True)  # another one of this process may still be written
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        try:
            # Allocated: writing to a hole of a full file system would end the process by SIGBUS.
            os.posix_fallocate(file, 0, size)
            return cls(mmap.mmap(file, size), rank)
        except OSError:
            path.unlink(missing_ok=True)
            return None
        finally:
            os.close(file)

    def name_of(self, name: str) -> int:
        """The number of a name; 0, that of `OTHER_NAMES`, once there is no place for further ones."""
        found = self.names.get(name)
        return found if found is not None else self._add_name(name)

    def add(
        self,
        what: What,
        begin_ns: int,
        end_ns: int,
        step: int,
        value: float = 0.0,
        thread: int = 0,
        flags: int = 0,
    ) -> None:
        """Write a record over the oldest one.

        Args:
            what: it is about.
            begin_ns, end_ns, step, value, thread, flags: as in `Record`.
        """
        kind, name, micro_batch, micro_batches, peer = what
        with self._lock:
            number, memory = self._count, self._memory
            # Arguments one by one, here and below: a tuple of them would take as long as the rest.
            # fmt: off
            _pack_record(
                memory, RECORDS_AT + number % self._capacity * _RECORD_BYTES,
                begin_ns, end_ns, step, value, micro_batch, peer, name, micro_batches, thread, kind, flags, number,
            )
            # fmt: on
            self._count = self._numbers[_COUNT] = number + 1

    def open(self, what: What, begin_ns: int, step: int) -> None:
        """A span begins. To be called by one thread only, as `close` and `drop`."""
        self._depth = depth = self._depth + 1
        self._changes = changes = self._changes + 1
        memory = self._memory
        if depth <= MAX_OPEN:
            kind, name, micro_batch, micro_batches, peer = what
            # fmt: off
            _pack_record(
                memory, _BEFORE_OPEN + depth * _RECORD_BYTES,
                begin_ns, 0, step, 0.0, micro_batch, peer, name, micro_batches, 0, kind, 0, depth - 1,
            )
            # fmt: on
        self._numbers[_CHANGES], self._numbers[_DEPTH_NOW] = changes, depth

    def close(self, what: What, begin_ns: int, end_ns: int, step: int, value: float, flags: int) -> None:
        """The innermost span that `open` began ends: remove it from those that run, and `add` it."""
        kind, name, micro_batch, micro_batches, peer = what
        with self._lock:
            number, memory = self._count, self._memory
            # fmt: off
            _pack_record(
                memory, RECORDS_AT + number % self._capacity * _RECORD_BYTES,
                begin_ns, end_ns, step, value, micro_batch, peer, name, micro_batches, 0, kind, flags, number,
            )
            # fmt: on
            self.drop()
            self._count = self._numbers[_COUNT] = number + 1

    def drop(self) -> None:
        """The innermost span that `open` began ends, and is not recorded."""
        self._depth = depth = self._depth - 1
        self._changes = changes = self._changes + 1
        self._numbers[_CHANGES], self._numbers[_DEPTH_NOW] = changes, depth

    def lose(self) -> None:
        """Count a record that could not be written."""
        with self._lock:
            self._lost = self._numbers[_LOST] = self._lost + 1

    def _add_name(self, name: str) -> int:
        with self._lock:
            number = self.names.get(name, len(self.names))
            if number >= MAX_NAMES:
                self._lost_names = self._numbers[_LOST_NAMES] = self._lost_names + 1
                number = 0
            elif number == len(self.names):
                text = name.encode()[:NAME_BYTES].decode(errors="ignore").encode()
                at = NAMES_AT + number * NAME_BYTES
                self._memory[at : at + NAME_BYTES] = text.ljust(NAME_BYTES, b"\0")
                self.names[name] = number
                self._numbers[_NAMES] = number + 1
            return number


def read(path: Path) -> Recording | None:
    """A rank's recording up to now; `None` if there is none. Its rank may be writing."""
    copied = copy(path)
    return parse(*copied) if copied is not None else None


def copy(path: Path) -> tuple[bytes, bytes] | None:
    """The memory of a recording, and its counts after that was copied; `None` if there is none."""
    try:
        with path.open("rb") as file, closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as memory:
            if len(memory) < RECORDS_AT:
                return None
            counts = memory[_COUNTS]
            data = bytearray(memory)
            # Those that were added while the rest was copied may be missing from it.
            data[_COUNTS] = counts
            data[_OPEN] = _copy_open_spans(memory)
            return bytes(data), memory[_COUNTS]
    except (OSError, ValueError):
        return None


def _copy_open_spans(memory: mmap.mmap) -> bytes:
    """The spans that have begun, as they were at one moment; none if they change too fast."""
    for _ in range(_TRIES):
        before, found = memory[_DEPTH], memory[_OPEN]
        if memory[_DEPTH] == before:
            return before + found[len(before) :]
    return bytes(len(found))
