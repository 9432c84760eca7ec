"""Reads what is new in a rank's recording, again and again, while the rank writes."""

import mmap
import os
from pathlib import Path
from typing import NamedTuple

from mimo_role.monitoring.records import (
    COUNTS,
    COUNTS_AT,
    FIXED,
    MAGIC,
    NAME_BYTES,
    NAMES_AT,
    RECORD,
    RECORDS_AT,
    Record,
)

_COUNTS = slice(COUNTS_AT, COUNTS_AT + COUNTS.size)


class NewRecords(NamedTuple):
    """What a rank has recorded since the last look at it."""

    records: list[Record]
    """Oldest first."""
    names: list[str]
    """All names so far, by their numbers in records."""
    overwritten: int
    """New records that were gone before they were read."""
    wall_offset_ns: int
    """The time of day minus CLOCK_MONOTONIC when the recording began."""


class RingReader:
    """Reads one rank's ring. What it copies is what is new: 64 bytes per record.

    A rank that makes its ring again, as in a second `mimo_role.init()`, is read from its new ring on.
    """

    def __init__(self, path: Path) -> None:
        """`path` is that of the rank's recording, which need not be there yet."""
        self._path = path
        self._memory: mmap.mmap | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the file that is read."""
        self._names: list[str] = []
        self._next = 0
        """The number of the first record that was not read."""

    def read(self) -> NewRecords | None:
        """What is new; `None` as long as there is no recording."""
        self._open_if_new()
        memory = self._memory
        if memory is None:
            return None
        _, capacity, _, monotonic_ns, wall_ns = FIXED.unpack_from(memory)
        count, names, _, _ = COUNTS.unpack(memory[_COUNTS])
        if names > len(self._names):
            self._names = [*self._names, *(_name(memory, number) for number in range(len(self._names), names))]
        begin = max(self._next, count - capacity)
        data = _copy(memory, begin, count, capacity)
        # The record with the number `newest` may be half written, over the one that is `capacity` older.
        newest, *_ = COUNTS.unpack(memory[_COUNTS])
        first = max(begin, newest - capacity + 1) if newest >= capacity else begin
        skipped = min(max(0, first - begin), count - begin)
        overwritten = begin + skipped - self._next
        self._next = count
        records = list(map(Record._make, RECORD.iter_unpack(data[skipped * RECORD.size :])))
        return NewRecords(records, self._names, overwritten, wall_ns - monotonic_ns)

    def close(self) -> None:
        """Release the memory."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _open_if_new(self) -> None:
        """Map the file, if it is another one than the one that is mapped. One that was removed is still read."""
        try:
            found = self._path.stat()
            identity = found.st_dev, found.st_ino
            if identity == self._identity:
                return
            with self._path.open("rb") as file:
                found = os.fstat(file.fileno())
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):
            return
        if len(memory) < RECORDS_AT or memory[: len(MAGIC)] != MAGIC:  # its rank is about to write its beginning
            memory.close()
            return
        self.close()
        self._memory, self._identity = memory, (found.st_dev, found.st_ino)
        self._names, self._next = [], 0


def _copy(memory: mmap.mmap, begin: int, end: int, capacity: int) -> bytes:
    """The records from one number to another."""
    if begin >= end:
        return b""
    first, last = begin % capacity, (end - 1) % capacity + 1
    if first < last:
        return memory[_place(first) : _place(last)]
    return memory[_place(first) : _place(capacity)] + memory[_place(0) : _place(last)]


def _place(at: int) -> int:
    return RECORDS_AT + at * RECORD.size


def _name(memory: mmap.mmap, number: int) -> str:
    at = NAMES_AT + number * NAME_BYTES
    return memory[at : at + NAME_BYTES].rstrip(b"\0").decode(errors="replace")
