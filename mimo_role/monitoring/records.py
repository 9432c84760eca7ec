"""What one rank has recorded, as it is laid out in shared memory and in files. Without torch.

```
0      magic, capacity, rank, and the same moment on two clocks: CLOCK_MONOTONIC and the time of day, in ns
64     number of records so far, of names, of names that did not fit, of records that were lost
96     how often a span has begun or ended, and the number of those that have begun and not ended
192    those spans, as records
4096   names, 64 bytes each: UTF-8, filled up with zeros
36864  records, 64 bytes each; record N lies at place N modulo capacity
```

A record is written before the count that includes it, and a name before the first record with it. So in a copy that is made
between two looks at the counts, all records are whole up to the first count, but for those that the second one overwrites.
A span that begins is written before the count that includes it: a copy between two equal looks at the counts has it whole.
Each count is written in one store, so that no reader sees a part of it, and the magic last.
"""

import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

MAGIC = b"MIMOREC1"
FIXED = struct.Struct("=8sqqqq")
COUNTS = struct.Struct("=qqqq")
COUNTS_AT = 64
DEPTH = struct.Struct("=qq")
DEPTH_AT = COUNTS_AT + COUNTS.size
OPEN_AT = 192
MAX_OPEN = 16
"""Spans inside each other. Those further inside are recorded when they end, as all are, but are not shown while they run."""
NAMES_AT = 4096
NAME_BYTES = 64
MAX_NAMES = 512
RECORDS_AT = NAMES_AT + MAX_NAMES * NAME_BYTES
RECORD = struct.Struct("=qqqdiiHHHBBq4x")
"""begin, end, step, value, micro-batch, peer, name, micro-batches, thread, kind, flags; at its end, the record's number."""
NONE = -1


class Kind(IntEnum):
    """What a record is about."""

    SPAN = 1
    """A span that the script has named."""
    STEP = 2
    """A step begins. `value` is the number of the last one that the script will do; 0 if it does not state it."""
    SCALAR = 3
    """A number: `value`."""
    FORWARD = 4
    BACKWARD = 5
    WAIT_ACTIVATIONS = 6
    WAIT_GRADIENTS = 7
    SEND_ACTIVATIONS = 8
    SEND_GRADIENTS = 9
    ARRIVAL = 10
    """No span: something that was waited for has come from this peer too."""
    WAIT_SENT = 11
    """The wait until what was sent has been received."""
    COLLECTIVE = 12
    """The wait for a collective of a process group such as `language.tp`, within the other spans of its thread."""

    @property
    def is_span(self) -> bool:
        """Whether it has a duration."""
        return self not in (Kind.STEP, Kind.SCALAR, Kind.ARRIVAL)


class Flag(IntEnum):
    """Bits of a record."""

    DEVICE = 1
    """The times are the device's; the same span is recorded with the host's times too."""
    FAILED = 2
    """An exception ended the span."""


class Record(NamedTuple):
    """One record. Times are in ns on this host's CLOCK_MONOTONIC."""

    begin_ns: int
    end_ns: int
    """Equal to `begin_ns` where there is no duration."""
    step: int
    """-1 before the first."""
    value: float
    """A scalar; of a step, the last one's number; of a message between stages, the number of its schedule and step: the same on
    sender and receiver."""
    micro_batch: int
    """-1: none."""
    peer: int
    """The rank that has sent what was waited for; -1: none."""
    name: int
    micro_batches: int
    """How many, from `micro_batch` on."""
    thread: int
    """0 for the thread that made the context; others are counted."""
    kind: int
    flags: int
    number: int


@dataclass(frozen=True)
class Recording:
    """What was read of one rank's recording."""

    rank: int
    names: Sequence[str]
    """By their numbers in records."""
    records: Sequence[Record]
    """Those that are left, oldest first."""
    open: Sequence[Record]
    """Spans that have begun and not ended, the outermost first; `end_ns` is 0."""
    overwritten: int
    """Older records that are gone."""
    lost: int
    """Records that were never written, since too many waited for the device."""
    lost_names: int
    """Names that did not fit; their records have the name of number 0."""
    wall_offset_ns: int
    """The time of day minus CLOCK_MONOTONIC when the recording began."""


def parse(
    data: bytes,
    counts_after: bytes | None = None,
    *,
    steps: Container[int] | None = None,
    last_ns: int | None = None,
) -> Recording | None:
    """A recording from a copy of its memory, or from the beginning of it that is in use.

    Args:
        data: the copy.
        counts_after: the counts as they were after the copy was made, if its rank may have written meanwhile.
        steps: only records of these steps.
        last_ns: only records of so long before the end of the last one.

    Returns:
        `None` if this is no recording.
    """
    if len(data) < RECORDS_AT or data[: len(MAGIC)] != MAGIC:
        return None
    _, capacity, rank, monotonic_ns, wall_ns = FIXED.unpack_from(data)
    count, names, lost_names, lost = COUNTS.unpack_from(data, COUNTS_AT)
    newest = COUNTS.unpack(counts_after)[0] if counts_after is not None else count
    # The record with the number `newest` may be half written, over the one that is `capacity` older.
    first = max(0, newest - capacity + (counts_after is not None))
    records: list[Record] = []
    limit_ns = None
    for number in range(count - 1, first - 1, -1):
        record = Record._make(RECORD.unpack_from(data, RECORDS_AT + number % capacity * RECORD.size))
        if record.number != number:
            continue
        if limit_ns is None and last_ns is not None:
            limit_ns = record.end_ns - last_ns
        if limit_ns is not None and record.end_ns < limit_ns:
            if record.flags & Flag.DEVICE:  # written when the device had reached it
                continue
            break
        if steps is None or record.step in steps:
            records.append(record)
    records.reverse()
    return Recording(
        rank=rank,
        names=[_name(data, number) for number in range(names)],
        records=records,
        open=[each for each in _open_spans(data) if each.name < names and (steps is None or each.step in steps)],
        overwritten=first,
        lost=lost,
        lost_names=lost_names,
        wall_offset_ns=wall_ns - monotonic_ns,
    )


def is_empty(data: bytes) -> bool:
    """Whether a copy of a recording's memory has neither records nor spans that have begun."""
    if len(data) < RECORDS_AT or data[: len(MAGIC)] != MAGIC:
        return True
    return not (COUNTS.unpack_from(data, COUNTS_AT)[0] or DEPTH.unpack_from(data, DEPTH_AT)[1])


def used_bytes(data: bytes) -> int:
    """How much of the memory is in use, from its beginning."""
    _, capacity, *_ = FIXED.unpack_from(data)
    count, *_ = COUNTS.unpack_from(data, COUNTS_AT)
    return RECORDS_AT + int(min(count, capacity)) * RECORD.size


def _name(data: bytes, number: int) -> str:
    at = NAMES_AT + number * NAME_BYTES
    return data[at : at + NAME_BYTES].rstrip(b"\0").decode(errors="replace")


def _open_spans(data: bytes) -> list[Record]:
    _, depth = DEPTH.unpack_from(data, DEPTH_AT)
    return [Record._make(RECORD.unpack_from(data, OPEN_AT + at * RECORD.size)) for at in range(min(depth, MAX_OPEN))]
