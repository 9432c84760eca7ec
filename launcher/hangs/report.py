"""Who holds up a job that makes no progress: which ranks wait in which collective, and who has not entered it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from launcher.formatting import in_words, ranges
from launcher.hangs.probe import RankSnapshot
from launcher.plan.launch_plan import STALL_SHARE
from mimo_role import Topology
from mimo_role.monitoring.flight_recorder import GroupTrace

_ROUNDED = 0.01
_INNERMOST = 3
_RECEIVING = {
    *(("distributed_c10d.py", name) for name in ("send", "recv")),
    *(("batch_ledger.py", name) for name in ("_wait", "transfer")),
}
_SHOWN_WAITS = 6
_SHOWN_PLACES = 4
_SHOWN_FRAMES = 6


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A collective that some ranks of a group have entered, and others have not."""

    group: str
    """What the group is for, such as `language.tp`."""
    members: tuple[int, ...]
    operation: str
    number: int
    """Which of the group's collectives it is, from 1."""
    inside: tuple[int, ...]
    missing: tuple[int, ...]
    timeout_s: float = 0.0
    """The collective's own limit; 0 if it is not known."""


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """What the ranks were found at."""

    topology: Topology
    still_s: float
    sightings: Sequence[RankSnapshot]
    waits: Sequence[Wait]
    culprits: Sequence[int]
    """The ranks that others wait for and that wait for nobody themselves, or that are stopped."""
    receiving: Sequence[int] = ()
    """The ranks that wait in a send or a receive, of which torch's recorder does not tell."""

    @classmethod
    def of(cls, topology: Topology, still_s: float, sightings: Sequence[RankSnapshot]) -> "HangReport":
        """Find out who waits for whom."""
        waits = _waits(topology, sightings)
        # A rank waits for nobody in a collective that all have entered.
        waiting = {rank for wait in waits if wait.missing for rank in wait.inside}
        missing = {rank for wait in waits for rank in wait.missing}
        stopped = {sighting.rank for sighting in sightings if sighting.is_stopped}
        culprits = stopped or missing - waiting
        receiving = {sighting.rank for sighting in sightings if _waits_for_a_message(sighting)} - waiting
        if receiving and not culprits and not missing:
            culprits = {sighting.rank for sighting in sightings} - receiving - waiting
        return cls(
            topology=topology,
            still_s=still_s,
            sightings=sightings,
            waits=waits,
            culprits=sorted(culprits),
            receiving=sorted(receiving),
        )

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether ranks wait for others, for nearly as long as they may: the job would fail by itself soon."""
        waits = any(wait.missing and wait.timeout_s * (STALL_SHARE - _ROUNDED) <= self.still_s for wait in self.waits)
        return waits or bool(self.receiving and self.culprits) or any(sighting.is_stopped for sighting in self.sightings)

    @property
    def headline(self) -> str:
        """The one line that tells most."""
        steps = {sighting.rank: sighting.step for sighting in self.sightings if sighting.step is not None}
        held_up = [steps[rank] for rank in self.culprits if rank in steps]
        at = f" in step {min(held_up) if held_up else max(steps.values())}" if steps else ""
        who = f": {in_words(self.topology, self.culprits)} held up the others" if self.culprits else ""
        return f"no progress{at} for {self.still_s:g} s{who}"

    def text(self, stacks: Path) -> str:
        """The report for people. `stacks` is the folder with those of all ranks."""
        lines = [self.headline, *(f"  {line}" for line in map(self._line_of, self.waits[:_SHOWN_WAITS]))]
        if len(self.waits) > _SHOWN_WAITS:
            lines.append(f"  and {len(self.waits) - _SHOWN_WAITS} more collectives")
        if self.receiving:
            lines.append(f"  waiting for a message: {in_words(self.topology, self.receiving)}")
        if any(wait.missing for wait in self.waits) and not self.culprits:
            lines.append("  they wait for each other: some ranks call collectives in another order")
        shown = [sighting for sighting in self.sightings if sighting.rank in self.culprits] or list(self.sightings)
        for alike in _alike(shown)[:_SHOWN_PLACES]:
            lines += [f"  {line}" for line in self._place_of(alike)]
        lines.append(f"  stacks of all ranks: {stacks}/rank*.stacks.txt")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "headline": self.headline,
            "culprits": [{"rank": rank, "label": self.topology.label_of(rank)} for rank in self.culprits],
            "waits": [asdict(wait) for wait in self.waits],
            "ranks": [sighting.as_dict() | {"label": self.topology.label_of(sighting.rank)} for sighting in self.sightings],
        }

    def _line_of(self, wait: Wait) -> str:
        what = f"{wait.operation} number {wait.number} of {wait.group} (ranks {ranges(wait.members)})"
        if not wait.missing:
            return f"{what}: all have entered it"
        return f"{what}: {in_words(self.topology, wait.inside)} inside; not entered by {in_words(self.topology, wait.missing)}"

    def _place_of(self, alike: list[RankSnapshot]) -> Iterable[str]:
        """What ranks at the same place are at."""
        sighting, name = alike[0], in_words(self.topology, [sighting.rank for sighting in alike])
        if sighting.is_stopped:
            yield f"{name}, process {sighting.pid} on {sighting.host}, is stopped; kill -CONT {sighting.pid} would let it go on"
            return
        if not sighting.frames:
            yield f"{name}, process {sighting.pid} on {sighting.host}, does not answer (state {sighting.state or 'ended'})"
            return
        where = f", process {sighting.pid} on {sighting.host}, is" if len(alike) == 1 else " are"
        yield f"{name}{where} at"
        own = [frame for frame in sighting.frames if frame.is_users] or list(sighting.frames)
        for frame in own[-_SHOWN_FRAMES:]:
            yield f"    {frame}"
            if frame.source:
                yield f"        {frame.source}"
        called = list(takewhile(lambda frame: not frame.is_users, reversed(sighting.frames)))
        if len(called) < len(sighting.frames):
            # What the script has called, such as a data loader, and where that has come to.
            yield from (f"    ... {frame}" for frame in dict.fromkeys((*called[-1:], *called[:1])))


def _waits_for_a_message(sighting: RankSnapshot) -> bool:
    """Whether its main thread is in a send or a receive: torch's, or one of a bridge."""
    innermost = [frame for frame in sighting.frames if "torch/distributed/" in frame.file or "/mimo_role/" in frame.file][
        -_INNERMOST:
    ]
    return any((Path(frame.file).name, frame.function) in _RECEIVING for frame in innermost)


def _alike(sightings: Sequence[RankSnapshot]) -> list[list[RankSnapshot]]:
    """Ranks at the same place together, but for those that have none to tell."""
    found: dict[object, list[RankSnapshot]] = {}
    for sighting in sightings:
        tells = sighting.frames and not sighting.is_stopped
        found.setdefault(sighting.frames if tells else sighting.rank, []).append(sighting)
    return list(found.values())


def _waits(topology: Topology, sightings: Sequence[RankSnapshot]) -> list[Wait]:
    """The collectives in which ranks wait, of each group the first."""
    by_group: dict[str, dict[int, GroupTrace]] = {}
    for sighting in sightings:
        for trace in sighting.traces or ():
            by_group.setdefault(trace.name, {})[sighting.rank] = trace
    found = [
        _wait_at(topology, traces, number)
        for traces in by_group.values()
        for number in sorted({min(trace.waiting) for trace in traces.values() if trace.waiting})
    ]
    # The smallest group tells most.
    return sorted(found, key=lambda wait: (not wait.missing, len(wait.members), wait.members))


def _wait_at(topology: Topology, traces: Mapping[int, GroupTrace], number: int) -> Wait:
    """One collective of one group, by what each rank has done in the group."""
    any_trace = next(iter(traces.values()))
    is_world = any_trace.description == "default_pg"
    told = next((trace.ranks for trace in traces.values() if trace.ranks), None)
    members = tuple(range(topology.world_size)) if is_world else tuple(sorted(told or traces))
    waiting = {rank: trace for rank, trace in traces.items() if number in trace.waiting}
    return Wait(
        group="the world" if is_world else any_trace.description or any_trace.name,
        members=members,
        operation=next(iter(waiting.values())).waiting[number],
        number=number,
        inside=tuple(rank for rank in members if rank in waiting),
        missing=tuple(rank for rank in members if rank not in traces or traces[rank].entered < number),
        timeout_s=max(trace.timeout_s for trace in waiting.values()),
    )
