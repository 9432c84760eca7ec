"""One step of a run by rank: the spans of each, on one clock. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from launcher.formatting import counted, stage_of
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from launcher.trace.spans import clock_offsets, title_of, track_name, track_of
from mimo_role.monitoring.records import NONE, Flag, Kind, Record, Recording

MOST_RANKS = 64
"""Of more ranks, two of each stage are shown: the typical and the slowest one."""
MOST_SPANS = 16_000
"""Of more spans, the shortest ones are left out."""


class Category(Enum):
    """What a span is, as it is colored."""

    FORWARD = "forward"
    BACKWARD = "backward"
    WAIT = "wait"
    SEND = "send"
    COLLECTIVE = "collective"
    SCRIPT = "script"


_CATEGORIES = {
    Kind.FORWARD: Category.FORWARD,
    Kind.BACKWARD: Category.BACKWARD,
    Kind.WAIT_ACTIVATIONS: Category.WAIT,
    Kind.WAIT_GRADIENTS: Category.WAIT,
    Kind.WAIT_SENT: Category.WAIT,
    Kind.SEND_ACTIVATIONS: Category.SEND,
    Kind.SEND_GRADIENTS: Category.SEND,
    Kind.COLLECTIVE: Category.COLLECTIVE,
    Kind.SPAN: Category.SCRIPT,
}


class Span(NamedTuple):
    """One span. Times are in us since the step began on the first rank."""

    begin_us: int
    duration_us: int
    depth: int
    """How many spans are around it."""
    category: Category
    title: str
    micro_batch: int
    """-1: none."""
    peer: int
    """The rank whose message was waited for; -1: none."""
    note: str
    """`failed`, `unfinished`, or empty."""


@dataclass(frozen=True, kw_only=True)
class TimelineRow:
    """One track of one rank."""

    rank: int
    label: str
    """As `language.pp1.tp0`."""
    track: str
    remark: str
    """Why the rank was chosen, where not all are shown."""
    spans: tuple[Span, ...]
    """Those that begin first come first, and of these the longest."""


@dataclass(frozen=True, kw_only=True)
class StepTimeline:
    """One step of all ranks, or of some of them."""

    step: int
    attempt: int
    duration_us: int
    rows: tuple[TimelineRow, ...]
    notes: tuple[str, ...]
    """What is not shown, in sentences."""


def steps_begun(recording: Recording) -> list[int]:
    """The steps whose beginning a rank has recorded, ascending."""
    return sorted({each.step for each in recording.records if each.kind == Kind.STEP})


def last_complete_step(found: Recordings) -> int | None:
    """The last step after which each rank that records steps has begun another one; else the last that all have begun.

    `None` if no rank records steps, or no step is in all recordings.
    """
    begun = [set(steps) for each in found.by_rank.values() if (steps := steps_begun(each))]
    common = sorted(set.intersection(*begun)) if begun else []
    return common[-2] if len(common) > 1 else common[0] if common else None


def ranks_to_read(plan: LaunchPlan, wanted: Sequence[int]) -> list[int]:
    """Those whose recordings a timeline is made from: all, or of a large world some of each stage, and `wanted`."""
    world_size = plan.topology.world_size
    if world_size <= MOST_RANKS:
        return list(range(world_size))
    stages = ranks_by_stage(plan)
    most = max(2, min(8, 4 * MOST_RANKS // len(stages)))
    chosen = [ranks[at * len(ranks) // most] for ranks in stages.values() for at in range(most)]
    return sorted({*chosen, *(rank for rank in wanted if 0 <= rank < world_size)})


def ranks_by_stage(plan: LaunchPlan) -> dict[str, list[int]]:
    """All ranks, by their stages: `language.pp1`."""
    found: dict[str, list[int]] = {}
    for rank in range(plan.topology.world_size):
        found.setdefault(stage_of(plan.topology, rank), []).append(rank)
    return found


def timeline_of(plan: LaunchPlan, found: Recordings, step: int, wanted: Sequence[int] = ()) -> StepTimeline | None:
    """The timeline of one step; `None` if no span of it is recorded.

    Args:
        plan: of the run.
        found: what its ranks have recorded, or some of them.
        step: its number.
        wanted: ranks to show in any case, such as one that failed.
    """
    offsets = clock_offsets(plan, found)
    records = {rank: _of_step(each, step, offsets[rank]) for rank, each in found.by_rank.items()}
    times = [at for each in records.values() for record in each for at in (record.begin_ns, record.end_ns or record.begin_ns)]
    spans = {rank: each for rank, each in records.items() if any(Kind(record.kind).is_span for record in each)}
    if not spans:
        return None
    zero_ns, end_ns = min(times), max(times)
    remarks, notes = _choice(plan, spans, wanted)
    rows = [
        row
        for rank, remark in remarks.items()
        for row in _rows(plan, found.by_rank[rank], spans[rank], remark, zero_ns, end_ns)
    ]
    kept, more = _without_the_shortest(rows)
    duration_us = max(1, (end_ns - zero_ns) // 1000)
    return StepTimeline(step=step, attempt=found.attempt, duration_us=duration_us, rows=tuple(kept), notes=(*notes, *more))


def _of_step(recording: Recording, step: int, offset_ns: int) -> list[Record]:
    """The records of a step on node 0's clock; spans that are open have the end 0."""
    return [
        each._replace(begin_ns=each.begin_ns + offset_ns, end_ns=each.end_ns + offset_ns if each.end_ns else 0)
        for each in (*recording.records, *recording.open)
        if each.step == step and each.kind not in (Kind.SCALAR, Kind.ARRIVAL)
    ]


def _choice(plan: LaunchPlan, spans: Mapping[int, list[Record]], wanted: Sequence[int]) -> tuple[dict[int, str], list[str]]:
    """The ranks to show, each with a remark, and notes about the others."""
    world_size, topology = plan.topology.world_size, plan.topology
    if world_size <= MOST_RANKS:
        missing = world_size - len(spans)
        return dict.fromkeys(sorted(spans), ""), [
            f"{counted(missing, 'rank')} recorded nothing in this step."
        ] if missing else []
    by_stage: dict[str, list[int]] = {}
    for rank in sorted(spans):
        by_stage.setdefault(stage_of(topology, rank), []).append(rank)
    remarks: dict[int, str] = {}
    for ranks in by_stage.values():
        in_order = sorted(ranks, key=lambda rank: _compute_ns(spans[rank]))
        remarks[in_order[(len(in_order) - 1) // 2]] = "typical"
        remarks.setdefault(in_order[-1], f"slowest of {len(in_order)} read")
        remarks |= {rank: remarks.get(rank) or "reported" for rank in ranks if rank in wanted}
    note = (
        f"Of {world_size:,} ranks, the recordings of {len(spans):,} were read. Shown are two of each stage, the typical and "
        "the slowest by its forwards and backwards in this step, and ranks that the report names."
    )
    return dict(sorted(remarks.items())), [note]


def _compute_ns(records: Sequence[Record]) -> int:
    kinds, on_host = (Kind.FORWARD, Kind.BACKWARD), [each for each in records if not each.flags & Flag.DEVICE]
    return sum(each.end_ns - each.begin_ns for each in on_host if each.kind in kinds and each.end_ns)


def _rows(
    plan: LaunchPlan, recording: Recording, records: Sequence[Record], remark: str, zero_ns: int, end_ns: int
) -> list[TimelineRow]:
    tracks: dict[int, list[Record]] = {}
    for record in records:
        if Kind(record.kind).is_span:
            tracks.setdefault(track_of(record), []).append(record)
    return [
        TimelineRow(
            rank=recording.rank,
            label=plan.topology.label_of(recording.rank),
            track=track_name(track),
            remark=remark,
            spans=tuple(_spans(recording, tracks[track], zero_ns, end_ns)),
        )
        for track in sorted(tracks)
    ]


def _spans(recording: Recording, records: Sequence[Record], zero_ns: int, end_ns: int) -> list[Span]:
    found: list[Span] = []
    around: list[int] = []
    for record in sorted(records, key=lambda each: (each.begin_ns, -(each.end_ns or end_ns), -each.number)):
        end = record.end_ns or end_ns
        while around and around[-1] <= record.begin_ns:
            around.pop()
        found.append(
            Span(
                begin_us=(record.begin_ns - zero_ns) // 1000,
                duration_us=(end - record.begin_ns) // 1000,
                depth=len(around),
                category=_CATEGORIES[Kind(record.kind)],
                title=title_of(Kind(record.kind), recording.names[record.name]),
                micro_batch=record.micro_batch,
                peer=record.peer if record.peer != NONE else -1,
                note="failed" if record.flags & Flag.FAILED else "" if record.end_ns else "unfinished",
            )
        )
        around.append(end)
    return found


def _without_the_shortest(rows: Sequence[TimelineRow]) -> tuple[list[TimelineRow], list[str]]:
    """Rows with at most `MOST_SPANS` spans, and a note if some were left out."""
    durations = sorted((span.duration_us for row in rows for span in row.spans), reverse=True)
    if len(durations) <= MOST_SPANS:
        return list(rows), []
    least_us = durations[MOST_SPANS] + 1
    kept = [replace(row, spans=tuple(span for span in row.spans if span.duration_us >= least_us)) for row in rows]
    left_out = len(durations) - sum(len(row.spans) for row in kept)
    note = f"{left_out:,} spans shorter than {least_us:,} us are left out; `mimo-launch trace` writes all of them."
    return kept, [note]
