"""The recorded steps of a run that can be compared: all of one form, and recorded whole on the same ranks. Pure."""

from collections import Counter, defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from launcher.trace.spans import clock_offsets
from mimo_role.monitoring.records import Flag, Kind, Record, Recording


@dataclass(frozen=True)
class Needed:
    """Which steps are learned from."""

    warm_up: int
    """First steps of a schedule that are left out: memory is taken and kernels are loaded then."""
    least: int
    """Steps that are needed after them."""
    how: str
    """How there are more."""


OF_RUN = Needed(2, 3, "train for more steps, or give other --steps")

COMPUTES = (Kind.FORWARD, Kind.BACKWARD)
WAITS = (Kind.WAIT_ACTIVATIONS, Kind.WAIT_GRADIENTS)
SENDS = (Kind.SEND_ACTIVATIONS, Kind.SEND_GRADIENTS)
_OF_SCHEDULE = {*COMPUTES, *WAITS, *SENDS, Kind.ARRIVAL, Kind.WAIT_SENT}
_STEPS_PER_SCHEDULE = 2**32
"""As `mimo_role.monitoring.recorder` numbers steps."""


@dataclass(frozen=True)
class Span:
    """A record of the schedule, with its name; times in ns on node 0's clock."""

    kind: Kind
    name: str
    """The stage, or the link between stages."""
    begin_ns: int
    end_ns: int
    micro_batch: int
    micro_batches: int
    peer: int


@dataclass(frozen=True)
class RecordedSteps:
    """Steps of one schedule that have the same forwards and backwards."""

    by_number: Mapping[int, Mapping[int, Sequence[Span]]]
    """By step of the schedule and rank: its spans, those that begin first first, and of these the longest."""
    begins_ns: Mapping[int, int]
    """By step, also of further ones: when the first forward of any rank begins."""
    on_device: bool
    """Whether the times are a device's."""

    @property
    def numbers(self) -> list[int]:
        """The steps, in order."""
        return sorted(self.by_number)

    @property
    def ranks(self) -> list[int]:
        """The ranks of which there are recordings."""
        return sorted(next(iter(self.by_number.values())))


def recorded_steps(
    plan: LaunchPlan, found: Recordings, script_steps: Container[int] | None = None, needed: Needed = OF_RUN
) -> RecordedSteps:
    """Choose the steps of a run to learn from.

    They are those of the most frequent form, with backwards if any have them: other numbers of micro-batches at the end of an
    epoch, evaluations, and steps of which older records were overwritten are left out, and so are the first ones (`needed`).

    Raises:
        LaunchError: nothing of a schedule was recorded, a stage has no rank with a recording, or there are too few such steps.
    """
    on_device = any(_is_of_device(each) for recording in found.by_rank.values() for each in recording.records)
    offsets = clock_offsets(plan, found)
    by_rank = {
        rank: _by_step(recording, offsets[rank], script_steps, on_device=on_device) for rank, recording in found.by_rank.items()
    }
    by_rank = {rank: steps for rank, steps in by_rank.items() if steps}
    if not by_rank and script_steps is not None:
        raise LaunchError("no forward or backward of these --steps is recorded; ranks keep their last records only")
    if not by_rank:
        raise LaunchError(
            "no forward or backward is recorded; advise needs a run whose script trains with Schedule1F1B, and which has "
            "run a step"
        )
    _check_names(plan, by_rank)
    _check_stages(plan, by_rank)
    common = set.intersection(*(set(steps) for steps in by_rank.values()))
    forms = {step: tuple(_form(by_rank[rank][step]) for rank in sorted(by_rank)) for step in common}
    counts = Counter(forms.values())
    chosen = max(counts, key=lambda form: (_has_backward(form), counts[form], str(form)), default=None)
    steps = sorted(step for step, form in forms.items() if form == chosen and step % _STEPS_PER_SCHEDULE >= needed.warm_up)
    if len(steps) < needed.least:
        after = f" after the first {needed.warm_up}, which are left out" if needed.warm_up else ""
        raise LaunchError(f"{_whole(len(steps))} recorded{after}; advise needs {needed.least}: {needed.how}")
    begins = {
        step: min(each.begin_ns for steps in by_rank.values() for each in steps[step] if each.kind is Kind.FORWARD)
        for step in common
        if any(each.kind is Kind.FORWARD for steps in by_rank.values() for each in steps[step])
    }
    return RecordedSteps({step: {rank: by_rank[rank][step] for rank in by_rank} for step in steps}, begins, on_device)


def _whole(steps: int) -> str:
    return "1 whole training step is" if steps == 1 else f"{steps} whole training steps are"


def _is_of_device(record: Record) -> bool:
    return bool(record.flags & Flag.DEVICE) and record.kind in COMPUTES


def _by_step(
    recording: Recording, offset: int, script_steps: Container[int] | None, *, on_device: bool
) -> dict[int, list[Span]]:
    """The spans of each step that did not fail."""
    found: defaultdict[int, list[Span]] = defaultdict(list)
    failed = set()
    for record in recording.records:
        kind, step = Kind(record.kind), int(record.value) if record.kind in _OF_SCHEDULE else 0
        is_of_clock = bool(record.flags & Flag.DEVICE) is on_device or kind is Kind.ARRIVAL
        if script_steps is not None and record.step not in script_steps:
            continue
        if kind not in _OF_SCHEDULE or record.thread or not is_of_clock:
            continue
        if record.flags & Flag.FAILED:
            failed.add(step)
        times = record.begin_ns + offset, record.end_ns + offset
        found[step].append(
            Span(kind, recording.names[record.name], *times, record.micro_batch, record.micro_batches, record.peer)
        )
    return {
        step: sorted(spans, key=lambda each: (each.begin_ns, -each.end_ns))
        for step, spans in found.items()
        if step not in failed and any(each.kind in COMPUTES for each in spans)
    }


def _form(spans: Sequence[Span]) -> tuple[tuple[int, str, int, int], ...]:
    """What a rank computes in a step, in its order."""
    return tuple((each.kind, each.name, each.micro_batch, each.micro_batches) for each in spans if each.kind in COMPUTES)


def _has_backward(form: tuple[tuple[tuple[int, str, int, int], ...], ...]) -> bool:
    return any(kind == Kind.BACKWARD for of_rank in form for kind, *_ in of_rank)


def _check_names(plan: LaunchPlan, by_rank: Mapping[int, Mapping[int, Sequence[Span]]]) -> None:
    """
    Raises:
        LaunchError: a forward or backward has the name of no stage.
    """
    known = {f"{name}.{stage}" for name, grid in plan.topology.grids.items() for stage in range(grid.axis_size("pp"))}
    for rank, steps in by_rank.items():
        names = {each.name for spans in steps.values() for each in spans if each.kind in COMPUTES}
        if unknown := sorted(names - known):
            raise LaunchError(
                f"rank {rank} has recorded {unknown[0]!r}, which is no stage of the plan; a recording has the first 64 bytes "
                "of a name, and 511 names"
            )


def _check_stages(plan: LaunchPlan, ranks: Collection[int]) -> None:
    """
    Raises:
        LaunchError: a stage has no rank with a recording.
    """
    for module, grid in plan.topology.grids.items():
        found = {grid.coords(rank)["pp"] for rank in ranks if rank in grid}
        if missing := set(range(grid.axis_size("pp"))) - found:
            raise LaunchError(
                f"no rank of {module} stage {min(missing)} has recorded a step; ranks record nothing where /dev/shm is full, "
                "or mimo-launch was killed"
            )
