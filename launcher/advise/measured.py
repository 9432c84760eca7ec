"""What the recordings of a run show of its costs. Pure."""

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from launcher.advise.rank_step import SECONDS, RankStep, rank_step
from launcher.advise.recorded_costs import Traffic, sent_in, stage_costs, traffic_of
from launcher.advise.recorded_shape import as_destinations, destinations_of, shape_of
from launcher.advise.recorded_steps import RecordedSteps, recorded_steps
from launcher.advise.simulator import StageCost, StepShape
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.topology.stage_links import StageId

_MEET = 0.9
"""The share of steps in which no rank begins the next one before all have ended, from which on ranks meet between steps."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The costs of a run in the layout in which it ran, or was rehearsed."""

    topology: Topology
    shape: StepShape
    destinations: Mapping[str, tuple[StageId, ...]]
    """By module, further stages that it feeds beside the first ones of the modules that take its output."""
    stages: Mapping[StageId, StageCost]
    """Without what they send."""
    traffic: Traffic
    rests: Mapping[str, float]
    """By module: seconds from the end of the schedule to the next step."""
    meets: bool
    """Whether all ranks wait for each other between steps."""
    step_s: float | None
    """The median time of a step; `None` of a rehearsal, whose ranks ran one after another."""
    steps: int
    """So many steps were measured."""
    ranks: int
    """So many ranks have recorded them."""
    is_known_order: bool
    """Whether the actions ran in the order of the schedule."""

    @property
    def is_rehearsed(self) -> bool:
        """Whether the costs are those of a rehearsal: of ranks that did not wait for each other."""
        return self.step_s is None


def measure(plan: LaunchPlan, found: Recordings, script_steps: Container[int] | None = None) -> Measured:
    """The costs of a run, by the median over its steps.

    Args:
        plan, found: the run and what it has recorded.
        script_steps: only these steps, as the script counts them.

    Raises:
        LaunchError: there is too little to learn from; see `recorded_steps`.
    """
    recorded = recorded_steps(plan, found, script_steps)
    taken = {number: rank_steps(recorded, number) for number in recorded.numbers}
    pairs = [(number, number + 1) for number in taken if number + 1 in taken]
    if not pairs:
        raise LaunchError("no two whole training steps that follow each other are recorded; train for more steps")
    steps = list(taken.values())
    sent = sent_in(steps)
    destinations = destinations_of(steps[0].values())
    graph = StageGraph(plan.topology, as_destinations(destinations))
    shape, is_known_order = shape_of(graph, steps[0], on_device=recorded.on_device)
    following = [(taken[this], taken[after]) for this, after in pairs]
    meets = sum(_met(*pair) for pair in following) >= _MEET * len(pairs)
    begins = recorded.begins_ns
    return Measured(
        topology=plan.topology,
        shape=shape,
        destinations=destinations,
        stages=stage_costs(steps, shape, sent),
        traffic=traffic_of(steps, sent),
        rests=_rests(plan.topology, following, [begins[after] for _, after in pairs], meets=meets),
        meets=meets,
        step_s=median(begins[after] - begins[this] for this, after in pairs) * SECONDS,
        steps=len(steps),
        ranks=len(recorded.ranks),
        is_known_order=is_known_order,
    )


def rank_steps(recorded: RecordedSteps, number: int) -> dict[int, RankStep]:
    """One step of the schedule, by rank."""
    return {rank: rank_step(rank, spans) for rank, spans in recorded.by_number[number].items()}


def _met(this: Mapping[int, RankStep], after: Mapping[int, RankStep]) -> bool:
    """Whether no rank began a step before all had ended the one before."""
    return min(rank.begin_ns for rank in after.values()) >= max(rank.end_ns for rank in this.values())


def _rests(
    topology: Topology,
    pairs: Sequence[tuple[Mapping[int, RankStep], Mapping[int, RankStep]]],
    next_forwards_ns: Sequence[int],
    *,
    meets: bool,
) -> dict[str, float]:
    if meets:
        ends = [max(rank.end_ns for rank in this.values()) for this, _ in pairs]
        rest = median(begin - end for begin, end in zip(next_forwards_ns, ends, strict=True)) * SECONDS
        return dict.fromkeys(topology.grids, rest)
    return rests_by_module(topology, pairs)


def rests_by_module(
    topology: Topology, pairs: Sequence[tuple[Mapping[int, RankStep], Mapping[int, RankStep]]]
) -> dict[str, float]:
    """By module: seconds between two steps of its slowest rank.

    Args:
        topology: of the world.
        pairs: steps and those that follow them, by rank.
    """
    rests: defaultdict[str, float] = defaultdict(float)
    for rank in pairs[0][0]:
        own = median(after[rank].begin_ns - this[rank].end_ns for this, after in pairs) * SECONDS
        for module in topology.modules_of(rank):
            rests[module] = max(rests[module], own)
    return dict(rests)
