"""The recordings of all ranks as one trace in Chrome's format, which Perfetto opens. Pure.

The format: "Trace Event Format", https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. One process
per rank, one thread for the host, one for the device, and one for each further thread of the script.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from launcher.coordination.clock_offset import ClockOffset
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from launcher.trace.spans import clock_offsets, nodes_of_ranks, title_of, track_name, track_of
from mimo_role.monitoring.records import NONE, Flag, Kind, Record, Recording

_SENDS = {Kind.SEND_ACTIVATIONS: Kind.WAIT_ACTIVATIONS, Kind.SEND_GRADIENTS: Kind.WAIT_GRADIENTS}

Event = dict[str, Any]


class _Message(NamedTuple):
    """One micro-batch between two stages, as both sides know it."""

    sender: int
    is_gradient: bool
    link: str
    schedule_step: float
    micro_batch: int


class _Place(NamedTuple):
    """Where an arrow begins or ends."""

    rank: int
    thread: int
    time_ns: int


def trace_of(
    plan: LaunchPlan, found: Recordings, *, steps: Container[int] | None = None, last_s: float | None = None
) -> dict[str, Any]:
    """The trace as a JSON object.

    Args:
        plan: of the run.
        found: what its ranks have recorded.
        steps: only records of these steps.
        last_s: only records of so many seconds before the last one of all ranks.
    """
    nodes, offsets = nodes_of_ranks(plan), clock_offsets(plan, found)
    kept = {rank: _shifted(recording.records, offsets[rank], steps) for rank, recording in found.by_rank.items()}
    running = {rank: _shifted(recording.open, offsets[rank], steps) for rank, recording in found.by_rank.items()}
    times = [each.end_ns for records in kept.values() for each in records]
    times += [each.begin_ns for records in running.values() for each in records]
    if last_s is not None:
        first_ns = max(times, default=0) - round(1e9 * last_s)
        kept = {rank: [each for each in records if each.end_ns >= first_ns] for rank, records in kept.items()}
    zero_ns = min((each.begin_ns for records in (*kept.values(), *running.values()) for each in records), default=0)
    events: list[Event] = []
    for rank, recording in found.by_rank.items():
        name = f"rank {rank} {plan.topology.label_of(rank)} on {plan.nodes[nodes[rank]].name}"
        events += _names(rank, name, kept[rank])
        events += _events_of(rank, recording, kept[rank], running[rank], lambda at_ns: (at_ns - zero_ns) / 1000)
    events += _arrows(found.by_rank, kept, lambda at_ns: (at_ns - zero_ns) / 1000)
    return {"traceEvents": events, "displayTimeUnit": "ms", "metadata": _metadata(plan, found, zero_ns, max(times, default=0))}


def _shifted(records: Any, offset_ns: int, steps: Container[int] | None) -> list[Record]:
    """On node 0's clock, those that begin first and, of these, the longest first."""
    found = [
        each._replace(begin_ns=each.begin_ns + offset_ns, end_ns=each.end_ns + offset_ns if each.end_ns else 0)
        for each in records
        if steps is None or each.step in steps
    ]
    return sorted(found, key=lambda each: (each.begin_ns, -each.end_ns, -each.number))


def _names(rank: int, name: str, records: list[Record]) -> Iterator[Event]:
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": rank, "tid": 0, "args": {"sort_index": rank}}
    for thread in sorted({0, *map(track_of, records)}):
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": thread, "args": {"name": track_name(thread)}}


def _events_of(
    rank: int, recording: Recording, records: list[Record], running: list[Record], microseconds: Callable[[int], float]
) -> Iterator[Event]:
    for record in sorted([*records, *running], key=lambda each: each.begin_ns):
        kind, at = Kind(record.kind), {"pid": rank, "tid": track_of(record), "ts": microseconds(record.begin_ns)}
        name = recording.names[record.name]
        if kind is Kind.STEP:
            yield {"ph": "i", "name": f"step {record.step}", "cat": "step", "s": "p", **at}
        elif kind is Kind.SCALAR and math.isfinite(record.value):
            yield {"ph": "C", "name": name, "cat": "scalar", **at, "args": {"value": record.value}}
        elif kind is Kind.SCALAR:
            yield {"ph": "i", "name": f"{name} is {record.value}", "cat": "scalar", "s": "t", **at}
        elif kind.is_span:
            more = {"ph": "X", "dur": (record.end_ns - record.begin_ns) / 1000} if record.end_ns else {"ph": "B"}
            yield {"name": title_of(kind, name), "cat": kind.name.lower(), **at, **more, "args": _arguments(record)}


def _arguments(record: Record) -> dict[str, Any]:
    found: dict[str, Any] = {"step": record.step}
    if record.micro_batch != NONE:
        found["micro_batch"] = record.micro_batch
    if record.micro_batches > 1:
        found["micro_batches"] = record.micro_batches
    if record.peer != NONE:
        found["from_rank"] = record.peer
    if record.flags & Flag.FAILED:
        found["failed"] = True
    if not record.end_ns:
        found["unfinished"] = True
    return found


def _arrows(
    recordings: Mapping[int, Recording], kept: Mapping[int, list[Record]], microseconds: Callable[[int], float]
) -> Iterator[Event]:
    """From each send to the last wait for it on each rank: of several tensors, each has one. A message that is sent twice under
    one identity, as where a step is repeated, has no arrow."""
    sent: dict[_Message, list[_Place]] = defaultdict(list)
    awaited: dict[tuple[_Message, int], list[_Place]] = defaultdict(list)
    for rank, records in kept.items():
        last: tuple[bool, _Place] | None = None
        for record in records:
            kind = Kind(record.kind)
            if record.flags & Flag.DEVICE:
                continue
            link = recordings[rank].names[record.name]
            place = _Place(rank, record.thread, max(record.begin_ns, record.end_ns - 1))
            identity = (link, record.value, record.micro_batch)
            if kind in _SENDS:
                start = place._replace(time_ns=record.begin_ns)
                sent[_Message(rank, kind is Kind.SEND_GRADIENTS, *identity)].append(start)
            elif kind in _SENDS.values():
                last = kind is Kind.WAIT_GRADIENTS, place
                awaited[_Message(record.peer, last[0], *identity), rank].append(place)
            elif kind is Kind.ARRIVAL and last is not None:  # of the wait before it
                awaited[_Message(record.peer, last[0], *identity), rank].append(last[1])
    number = 0
    for (message, _), ends in awaited.items():
        begins = sent.get(message, [])
        if len(begins) == 1:
            number += 1
            shared = {"name": message.link, "cat": "bridge", "id": number}
            yield {"ph": "s", **shared, **_at(begins[0], microseconds)}
            yield {"ph": "f", "bp": "e", **shared, **_at(max(ends, key=lambda each: each.time_ns), microseconds)}


def _at(place: _Place, microseconds: Callable[[int], float]) -> Event:
    return {"pid": place.rank, "tid": place.thread, "ts": microseconds(place.time_ns)}


def _metadata(plan: LaunchPlan, found: Recordings, zero_ns: int, last_ns: int) -> dict[str, Any]:
    """What the times are, and what is missing."""
    first = found.by_rank[min(found.by_rank)]
    wall_ns = zero_ns - clock_offsets(plan, found)[first.rank] + first.wall_offset_ns
    return {
        "run": plan.name,
        "attempt": found.attempt,
        "begin": datetime.fromtimestamp(wall_ns / 1e9, timezone.utc).isoformat(),
        "clock_error_ms": {
            node.name: _clock_error_ms(found.clocks.get(number), zero_ns, last_ns) for number, node in enumerate(plan.nodes)
        },
        "ranks_without_recording": sorted(set(range(plan.topology.world_size)) - found.by_rank.keys()),
        "records_overwritten": {str(rank): each.overwritten for rank, each in found.by_rank.items() if each.overwritten},
        "records_lost": {str(rank): each.lost for rank, each in found.by_rank.items() if each.lost},
        "names_lost": {str(rank): each.lost_names for rank, each in found.by_rank.items() if each.lost_names},
    }


def _clock_error_ms(clock: ClockOffset | None, *times_ns: int) -> float | None:
    """The largest error of a node's times, on node 0's clock, in a part of the trace; `None` where it is unknown."""
    if clock is None:
        return None
    if clock == ClockOffset.none(clock.measured_ns):
        return 0.0
    return max(clock.error_at(at_ns - clock.offset_ns) for at_ns in times_ns) / 1e6
