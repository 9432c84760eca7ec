"""What a recorded step consists of: its micro-batches, its frozen stages, its order. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from launcher.advise.rank_step import LINK, RankStep
from launcher.advise.simulator import StepShape
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import SLACK, Phase, timeline
from mimo_role.topology.stage_links import StageId

_MOST_SLACK = 16
"""The largest slack that is looked for in the order of a run's actions."""


def destinations_of(ranks: Iterable[RankStep]) -> dict[str, tuple[StageId, ...]]:
    """The stages beside the first one of a module that get another module's output."""
    links = {wait.link for rank in ranks for wait in rank.waits}
    found: defaultdict[str, set[StageId]] = defaultdict(set)
    for match in filter(None, map(LINK.fullmatch, links)):
        target = StageId(match["target"], int(match["of_target"]))
        if match["source"] != target.module and target.stage > 0:
            found[match["source"]].add(target)
    return {module: tuple(sorted(stages)) for module, stages in found.items()}


def as_destinations(stages: Mapping[str, Sequence[StageId]]) -> dict[str, dict[str, Sequence[StageId]]]:
    """As `StageGraph` takes them; the names of tensors do not matter here."""
    return {module: {"recorded": found} for module, found in stages.items() if found}


def shape_of(graph: StageGraph, step: Mapping[int, RankStep], *, on_device: bool) -> tuple[StepShape, bool]:
    """The form of a step, with the slack by which its order is that of the schedule; and whether there is one.

    Args:
        graph: of the world.
        step: by rank; of each stage there is one.
        on_device: whether the times are a device's, on which receives are kernels.
    """
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
            receives_are_kernels=on_device,
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
