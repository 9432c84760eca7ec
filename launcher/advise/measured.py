"""What the recordings of a run show of its costs. Pure."""

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from launcher.advise.rank_step import SECONDS, Message, RankStep, Run, Wait, rank_step
from launcher.advise.recorded_steps import RecordedSteps, recorded_steps
from launcher.advise.simulator import StageCost, StepShape
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import SLACK, Phase, timeline
from mimo_role.topology.stage_links import StageId

Steps = Sequence[Mapping[int, RankStep]]
"""By step and rank."""

_LINK = re.compile(r"(?P<source>.+) stage (?P<of_source>\d+) -> (?P<target>.+) stage (?P<of_target>\d+)")
_MOST_SLACK = 16
"""The largest slack that is looked for in the order of a run's actions."""
_REDUCES_IN_BACKWARD = 1.1
"""A last backward that takes so many times the others is taken to reduce gradients."""
_MEET = 0.9
"""The share of steps in which no rank begins the next one before all have ended, from which on ranks meet between steps."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What it takes to hand over a micro-batch, in seconds, by the modules of sender and receiver and the direction."""

    sends: Mapping[tuple[str, Phase], float]
    """By the module that sends: within its forwards or backwards."""
    messages: Mapping[tuple[str, str, Phase], float | None]
    """By both modules: until the message is there; `None` where no receiver waited for it."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The costs of a run in the layout in which it ran."""

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
    step_s: float
    """The median time of a step."""
    steps: int
    """So many steps were measured."""
    ranks: int
    """So many ranks have recorded them."""
    is_known_order: bool
    """Whether the actions ran in the order of the schedule."""


def measure(plan: LaunchPlan, found: Recordings, script_steps: Container[int] | None = None) -> Measured:
    """The costs of a run, by the median over its steps.

    Args:
        plan, found: the run and what it has recorded.
        script_steps: only these steps, as the script counts them.

    Raises:
        LaunchError: there is too little to learn from; see `recorded_steps`.
    """
    recorded = recorded_steps(plan, found, script_steps)
    taken = {number: _rank_steps(recorded, number) for number in recorded.numbers}
    pairs = [(number, number + 1) for number in taken if number + 1 in taken]
    if not pairs:
        raise LaunchError("no two whole training steps that follow each other are recorded; train for more steps")
    steps = list(taken.values())
    destinations = _destinations(steps[0].values())
    graph = StageGraph(plan.topology, as_destinations(destinations))
    shape, is_known_order = _shape(graph, steps[0], recorded)
    following = [(taken[this], taken[after]) for this, after in pairs]
    meets = sum(_met(*pair) for pair in following) >= _MEET * len(pairs)
    begins = recorded.begins_ns
    return Measured(
        topology=plan.topology,
        shape=shape,
        destinations=destinations,
        stages=_stage_costs(steps, shape),
        traffic=_traffic(steps),
        rests=_rests(plan.topology, following, [begins[after] for _, after in pairs], meets=meets),
        meets=meets,
        step_s=median(begins[after] - begins[this] for this, after in pairs) * SECONDS,
        steps=len(steps),
        ranks=len(recorded.ranks),
        is_known_order=is_known_order,
    )


def as_destinations(stages: Mapping[str, Sequence[StageId]]) -> dict[str, dict[str, Sequence[StageId]]]:
    """As `StageGraph` takes them; the names of tensors do not matter here."""
    return {module: {"recorded": found} for module, found in stages.items() if found}


def _rank_steps(recorded: RecordedSteps, number: int) -> dict[int, RankStep]:
    return {rank: rank_step(rank, spans) for rank, spans in recorded.by_number[number].items()}


def _destinations(ranks: Iterable[RankStep]) -> dict[str, tuple[StageId, ...]]:
    """The stages beside the first one of a module that get another module's output."""
    links = {wait.link for rank in ranks for wait in rank.waits}
    found: defaultdict[str, set[StageId]] = defaultdict(set)
    for match in filter(None, map(_LINK.fullmatch, links)):
        target = StageId(match["target"], int(match["of_target"]))
        if match["source"] != target.module and target.stage > 0:
            found[match["source"]].add(target)
    return {module: tuple(sorted(stages)) for module, stages in found.items()}


def _shape(graph: StageGraph, step: Mapping[int, RankStep], recorded: RecordedSteps) -> tuple[StepShape, bool]:
    """The form of a step, with the slack by which its order is that of the schedule; and whether there is one."""
    runs = [run for rank in step.values() for run in rank.runs]
    trained = {run.at for run in runs if run.phase is Phase.BACKWARD}
    per_run = {run.at.module: run.micro_batches for run in runs if run.micro_batches > 1}
    micro_batches = max(run.micro_batch + run.micro_batches for run in runs)
    frozen = frozenset(graph.after.keys() - trained) if trained else frozenset()
    for slack in sorted(range(_MOST_SLACK + 1), key=lambda slack: abs(slack - SLACK)):
        shape = StepShape(
            micro_batches=micro_batches,
            backward=bool(trained),
            frozen=frozen,
            per_run=per_run,
            slack=slack,
            receives_are_kernels=recorded.on_device,
        )
        if _is_order(graph, shape, step):
            return shape, True
    return replace(shape, slack=SLACK), False


def _is_order(graph: StageGraph, shape: StepShape, step: Mapping[int, RankStep]) -> bool:
    """Whether all ranks ran their actions in the order of the schedule."""
    actions = timeline(
        graph,
        shape.micro_batches,
        frozen=shape.frozen,
        backward=shape.backward,
        slack=shape.slack,
        per_run=shape.per_run,
    )
    for rank, found in step.items():
        own = graph.of_rank(rank)
        recorded = [(run.phase, run.at, run.micro_batch // max(run.micro_batches, 1)) for run in found.runs]
        if recorded != [tuple(action) for action in actions if action.at in own]:
            return False
    return True


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
    rests: defaultdict[str, float] = defaultdict(float)
    for rank in pairs[0][0]:
        own = median(after[rank].begin_ns - this[rank].end_ns for this, after in pairs) * SECONDS
        for module in topology.modules_of(rank):
            rests[module] = max(rests[module], own)
    return dict(rests)


def _stage_costs(steps: Steps, shape: StepShape) -> dict[StageId, StageCost]:
    """Of each stage, what its slowest rank takes: its lanes work on each micro-batch together."""
    overheads = _overheads(steps)
    of_ranks: defaultdict[StageId, list[StageCost]] = defaultdict(list)
    for rank, found in steps[0].items():
        for at in dict.fromkeys(run.at for run in found.runs):
            own = [[run for run in step[rank].runs if run.at == at] for step in steps]
            of_ranks[at].append(_rank_cost(own, overheads[rank], trains=shape.backward and at not in shape.frozen))
    return {
        at: StageCost(
            forward_s=max(cost.forward_s for cost in costs),
            backward_s=max(cost.backward_s for cost in costs),
            last_backward_s=max(cost.last_backward_s for cost in costs),
            overhead_s=fmean(cost.overhead_s for cost in costs),
        )
        for at, costs in of_ranks.items()
    }


def _rank_cost(steps: Sequence[Sequence[Run]], overhead_s: float, *, trains: bool) -> StageCost:
    """What one rank takes for its runs of a stage, which are given by step."""
    forwards, backwards = (
        [[run.compute_s for run in runs if run.phase is phase] for runs in steps] for phase in (Phase.FORWARD, Phase.BACKWARD)
    )
    backward_s, last_backward_s = _backward_costs(backwards) if trains else (0.0, 0.0)
    return StageCost(
        forward_s=median(map(fmean, forwards)),
        backward_s=backward_s,
        last_backward_s=last_backward_s,
        overhead_s=overhead_s,
    )


def _backward_costs(steps: Sequence[Sequence[float]]) -> tuple[float, float]:
    """What a backward takes, and the last of a step."""
    each, last = median(fmean(times[:-1] or times) for times in steps), median(times[-1] for times in steps)
    if last > _REDUCES_IN_BACKWARD * each:
        return each, last
    each = median(map(fmean, steps))
    return each, each


def _overheads(steps: Steps) -> dict[int, float]:
    """By rank: the time per action between its spans, and of waits for what was there already."""
    found: dict[int, float] = {}
    sent = [_sent(step) for step in steps]
    for rank in steps[0]:
        of_steps = []
        for step, sent_in_step in zip(steps, sent, strict=True):
            had = [wait for wait in step[rank].waits if _late_ns(wait, sent_in_step) is None]
            waits_s = sum(wait.end_ns - wait.begin_ns for wait in had) * SECONDS
            of_steps.append((step[rank].gap_s + waits_s) / len(step[rank].runs))
        found[rank] = median(of_steps)
    return found


def _traffic(steps: Steps) -> Traffic:
    sends: defaultdict[tuple[str, Phase], list[float]] = defaultdict(list)
    messages: defaultdict[tuple[str, str, Phase], list[float]] = defaultdict(list)
    for step in steps:
        sent = _sent(step)
        for rank in step.values():
            for run in rank.runs:
                if run.send_s:
                    sends[run.at.module, run.phase].append(run.send_s)
            for wait in rank.waits:
                key = *_modules_of(wait.link), wait.phase
                late_ns = _late_ns(wait, sent)
                messages[key] += [] if late_ns is None else [late_ns * SECONDS]
    return Traffic(
        sends={key: median(times) for key, times in sends.items()},
        messages={key: median(times) if times else None for key, times in messages.items()},
    )


def _sent(step: Mapping[int, RankStep]) -> dict[Message, int]:
    return {message: at_ns for rank in step.values() for message, at_ns in rank.sent_ns.items()}


def _late_ns(wait: Wait, sent: Mapping[Message, int]) -> int | None:
    """How long after it was sent something came that a rank waited for; `None` if it was sent before the wait, or unknown."""
    times = [sent.get(Message(wait.link, wait.phase, wait.micro_batch, sender)) for sender in wait.senders]
    known = [at_ns for at_ns in times if at_ns is not None]
    if len(known) < len(times) or max(known) <= wait.begin_ns:
        return None
    return max(wait.end_ns - max(known), 0)


def _modules_of(link: str) -> tuple[str, str]:
    match = _LINK.fullmatch(link)
    return (match["source"], match["target"]) if match is not None else (link, link)
