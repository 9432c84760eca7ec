"""The report of a hang: which ranks wait in which collective or for which message, and which ranks they wait for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from launcher.formatting import describe_ranks, ranges
from launcher.hangs.message_waits import MessageWait, describe_messages, message_waits
from launcher.hangs.probe import RankSnapshot
from launcher.plan.launch_plan import STALL_SHARE
from mimo_role import Topology
from mimo_role.monitoring.flight_recorder import GroupTrace

_ROUNDED = 0.01
_INNERMOST = 3
_TORCH_MESSAGES = {("distributed_c10d.py", "send"), ("distributed_c10d.py", "recv")}
_SHOWN_WAITS = 6
_SHOWN_PLACES = 4
_SHOWN_FRAMES = 6


@dataclass(frozen=True, kw_only=True)
class Wait:
    """A collective that some ranks of a group have entered and others have not."""

    group: str
    """The name of the group, such as `language.tp`."""
    members: tuple[int, ...]
    operation: str
    number: int
    """Its number among the collectives of the group, from 1."""
    inside: tuple[int, ...]
    missing: tuple[int, ...]
    timeout_s: float = 0.0
    """The timeout of the collective; 0 if it is not known."""


@dataclass(frozen=True, kw_only=True)
class HangReport:
    """Where the ranks are, and which of them hold up the others."""

    topology: Topology
    still_s: float
    snapshots: Sequence[RankSnapshot]
    waits: Sequence[Wait]
    culprits: Sequence[int]
    """The ranks that others wait for and that do not wait themselves, or that are stopped."""
    messages: Sequence[MessageWait] = ()
    """The messages that ranks wait for, by torch's flight recorder."""
    receiving: Sequence[int] = ()
    """The ranks that wait in a send or a receive which the recorder does not have, by their stacks."""
    is_joining: bool = False
    """Whether the ranks were joining, for longer than they may."""

    @classmethod
    def of(
        cls, topology: Topology, still_s: float, snapshots: Sequence[RankSnapshot], *, is_joining: bool = False
    ) -> "HangReport":
        """Find out which ranks wait for which. Ranks that join wait for those that do not."""
        waits, messages = _waits(topology, snapshots), message_waits(topology, snapshots)
        stopped = {snapshot.rank for snapshot in snapshots if snapshot.is_stopped}
        late = stopped | (set(_absent(topology, snapshots)) if is_joining else set())
        # In a collective that all have entered, no rank waits for another.
        waiting = {rank for wait in waits if wait.missing for rank in wait.inside} | {wait.rank for wait in messages}
        receiving = {snapshot.rank for snapshot in snapshots if _waits_for_a_message(snapshot)} - waiting
        return cls(
            topology=topology,
            still_s=still_s,
            snapshots=snapshots,
            waits=waits,
            culprits=sorted(late or _culprits(snapshots, waits, messages, receiving)),
            messages=messages,
            receiving=sorted(receiving),
            is_joining=is_joining,
        )

    @property
    def is_beyond_doubt(self) -> bool:
        """Whether ranks have waited for others for nearly as long as their timeout: the job would soon fail anyway."""
        if self.is_joining or any(snapshot.is_stopped for snapshot in self.snapshots):
            return True
        timeouts_s = [wait.timeout_s for wait in self.waits if wait.missing]
        timeouts_s += [wait.timeout_s for wait in self.messages if wait.is_missing]
        waits = any(timeout_s * (STALL_SHARE - _ROUNDED) <= self.still_s for timeout_s in timeouts_s)
        return waits or bool(self.receiving and self.culprits)

    @property
    def headline(self) -> str:
        """The step, the time and the ranks that hold up the others, in one line."""
        who = f": {describe_ranks(self.topology, self.culprits)} held up the others" if self.culprits else ""
        if self.is_joining:
            return f"joining has taken {self.still_s:g} s, longer than runtime.timeout_s{who}"
        steps = {snapshot.rank: snapshot.step for snapshot in self.snapshots if snapshot.step is not None}
        held_up = [steps[rank] for rank in self.culprits if rank in steps]
        at = f" in step {min(held_up) if held_up else max(steps.values())}" if steps else ""
        return f"no progress{at} for {self.still_s:g} s{who}"

    def text(self, stacks: Path) -> str:
        """The report for people. `stacks` is the pattern of the files with the stacks of all ranks."""
        lines = [self.headline, *(f"  {line}" for line in self._arrivals())]
        lines += [f"  {line}" for line in map(self._line_of, self.waits[:_SHOWN_WAITS])]
        if len(self.waits) > _SHOWN_WAITS:
            lines.append(f"  and {len(self.waits) - _SHOWN_WAITS} more collectives")
        lines += [f"  {line}" for line in describe_messages(self.topology, self.messages)]
        if self.receiving:
            lines.append(f"  waiting for a message: {describe_ranks(self.topology, self.receiving)}")
        if not self.culprits and any(wait.is_missing for wait in self.messages):
            lines.append("  they wait for each other: some ranks call collectives or exchange messages in a different order")
        elif not self.culprits and any(wait.missing for wait in self.waits):
            lines.append("  they wait for each other: some ranks call collectives in a different order")
        shown = [snapshot for snapshot in self.snapshots if snapshot.rank in self.culprits] or list(self.snapshots)
        for group in _with_equal_stacks(shown)[:_SHOWN_PLACES]:
            lines += [f"  {line}" for line in self._place_of(group)]
        lines.append(f"  stacks of all ranks: {stacks}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report for programs."""
        return {
            "headline": self.headline,
            "culprits": [{"rank": rank, "label": self.topology.label_of(rank)} for rank in self.culprits],
            "waits": [asdict(wait) for wait in self.waits],
            "messages": [asdict(wait) for wait in self.messages],
            "ranks": [snapshot.as_dict() | {"label": self.topology.label_of(snapshot.rank)} for snapshot in self.snapshots],
        }

    def _arrivals(self) -> Iterable[str]:
        if not self.is_joining:
            return
        joining = describe_ranks(self.topology, [each.rank for each in self.snapshots if each.joining_s is not None])
        absent = _absent(self.topology, self.snapshots)
        yield f"joining: {joining}; not joining: {describe_ranks(self.topology, absent) if absent else 'no rank'}"

    def _line_of(self, wait: Wait) -> str:
        what = f"{wait.operation} number {wait.number} of {wait.group} (ranks {ranges(wait.members)})"
        if not wait.missing:
            return f"{what}: all have entered it"
        inside, missing = (describe_ranks(self.topology, ranks) for ranks in (wait.inside, wait.missing))
        return f"{what}: {inside} inside; not entered by {missing}"

    def _place_of(self, group: list[RankSnapshot]) -> Iterable[str]:
        """The place of ranks with equal stacks."""
        snapshot, name = group[0], describe_ranks(self.topology, [member.rank for member in group])
        if snapshot.is_stopped:
            yield f"{name}, process {snapshot.pid} on {snapshot.host}, is stopped; kill -CONT {snapshot.pid} continues it"
            return
        if not snapshot.frames:
            yield f"{name}, process {snapshot.pid} on {snapshot.host}, does not respond (state {snapshot.state or 'exited'})"
            return
        where = f", process {snapshot.pid} on {snapshot.host}, is" if len(group) == 1 else " are"
        yield f"{name}{where} at"
        own = [frame for frame in snapshot.frames if frame.is_users] or list(snapshot.frames)
        for frame in own[-_SHOWN_FRAMES:]:
            yield f"    {frame}"
            if frame.source:
                yield f"        {frame.source}"
        called = list(takewhile(lambda frame: not frame.is_users, reversed(snapshot.frames)))
        if len(called) < len(snapshot.frames):
            # The function that the script has called, such as a data loader, and the innermost one.
            yield from (f"    ... {frame}" for frame in dict.fromkeys((*called[-1:], *called[:1])))


def _absent(topology: Topology, snapshots: Sequence[RankSnapshot]) -> list[int]:
    """The ranks that are not joining."""
    joining = {snapshot.rank for snapshot in snapshots if snapshot.joining_s is not None}
    return [rank for rank in range(topology.world_size) if rank not in joining]


def _culprits(
    snapshots: Sequence[RankSnapshot], waits: Sequence[Wait], messages: Sequence[MessageWait], receiving: set[int]
) -> set[int]:
    """The ranks that others wait for and that do not wait themselves.

    If there are none, those that only send, and then those that receive: they may have posted it, and do other work.
    """
    late = {rank for wait in waits for rank in wait.missing}
    missing = late | {wait.peer for wait in messages if wait.is_missing}
    inside = {rank for wait in waits if wait.missing for rank in wait.inside}
    waiting = inside | {wait.rank for wait in messages if not wait.is_send}
    sending = {wait.rank for wait in messages if wait.is_send}
    found = missing - waiting - receiving
    if receiving and not found - sending:
        # From whom they wait for a message is not known; it is a rank that itself waits for nothing.
        return {snapshot.rank for snapshot in snapshots} - receiving - waiting - sending or missing - waiting
    return found - sending or found or late - inside


def _waits_for_a_message(snapshot: RankSnapshot) -> bool:
    """Whether its main thread is in a send or a receive of torch, or in a bridge."""
    communication = [frame for frame in snapshot.frames if "torch/distributed/" in frame.file or "/mimo_role/" in frame.file]
    return any(
        "/mimo_role/bridge/" in frame.file or (Path(frame.file).name, frame.function) in _TORCH_MESSAGES
        for frame in communication[-_INNERMOST:]
    )


def _with_equal_stacks(snapshots: Sequence[RankSnapshot]) -> list[list[RankSnapshot]]:
    """Groups of ranks with equal stacks; a rank without a stack is a group of its own."""
    found: dict[object, list[RankSnapshot]] = {}
    for snapshot in snapshots:
        has_stack = snapshot.frames and not snapshot.is_stopped
        found.setdefault(snapshot.frames if has_stack else snapshot.rank, []).append(snapshot)
    return list(found.values())


def _waits(topology: Topology, snapshots: Sequence[RankSnapshot]) -> list[Wait]:
    """The collectives in which ranks wait: the first ones of each group."""
    by_group: dict[str, dict[int, GroupTrace]] = {}
    for snapshot in snapshots:
        for trace in snapshot.traces or ():
            by_group.setdefault(trace.name, {})[snapshot.rank] = trace
    found = [
        _wait_at(topology, traces, number)
        for traces in by_group.values()
        for number in sorted({min(trace.waiting) for trace in traces.values() if trace.waiting})
    ]
    # The smallest group is the most specific.
    return sorted(found, key=lambda wait: (not wait.missing, len(wait.members), wait.members))


def _wait_at(topology: Topology, traces: Mapping[int, GroupTrace], number: int) -> Wait:
    """One collective of one group, from each rank's trace of the group."""
    any_trace = next(iter(traces.values()))
    is_world = any_trace.description == "default_pg"
    known = next((trace.ranks for trace in traces.values() if trace.ranks), None)
    members = tuple(range(topology.world_size)) if is_world else tuple(sorted(known or traces))
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
