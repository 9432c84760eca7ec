"""What a step would cost in another layout, from what it cost in the one that ran. Pure.

docs/guides/advise.md has the formulas and their sources.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from launcher.advise.measured import Measured
from launcher.advise.simulator import Costs, StageCost
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.lanes import lane_count
from mimo_role.topology.stage_links import StageId, StageLink

LATENCY_S = 1e-3
"""As much of the time of a message is taken for latency, which does not depend on its size."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the recordings do not show, as the user knows it."""

    samples: int | None = None
    """Samples of a micro-batch over all lanes. Default: lanes divide them evenly."""
    layers: Mapping[str, int] = field(default_factory=dict)
    """Layers of a module, which its stages divide as evenly as they can. Default: stages divide it evenly."""
    tp_efficiency: Mapping[str, float] = field(default_factory=dict)
    """By module: half of the time, divided by the time with twice the tp. Above 0, at most 1."""


@dataclass(frozen=True)
class ModuleScale:
    """By what a module's measured times are multiplied."""

    samples: float
    """Of computation and messages: samples of its slowest lane."""
    tp: float
    """Of computation."""
    shares: tuple[float, ...] | None
    """By stage, its share of the whole module; `None` where the stages are those that were measured."""

    @classmethod
    def of(cls, module: str, before: RankGrid, after: RankGrid, assumptions: Assumptions) -> "ModuleScale":
        """The scale of one module between two grids."""
        samples = lane_samples_of(after, assumptions) / lane_samples_of(before, assumptions)
        ratio = after.axis_size("tp") / before.axis_size("tp")
        tp = 1.0 if ratio == 1 else 1 / (ratio * assumptions.tp_efficiency[module] ** math.log2(ratio))
        stages = after.axis_size("pp")
        if stages == before.axis_size("pp"):
            return cls(samples, tp, None)
        layers = assumptions.layers.get(module, stages)
        own = [(stage + 1) * layers // stages - stage * layers // stages for stage in range(stages)]
        return cls(samples, tp, tuple(number / layers for number in own))


def lane_samples_of(grid: RankGrid, assumptions: Assumptions) -> float:
    """The samples of the lane that has most, of a micro-batch; without their number, its share of them."""
    lanes = lane_count(grid)
    return 1 / lanes if assumptions.samples is None else math.ceil(assumptions.samples / lanes)


def costs_of(measured: Measured, topology: Topology, graph: StageGraph, assumptions: Assumptions) -> Costs:
    """The costs of a step in another layout.

    Args:
        measured: those of the run.
        topology: the other layout; it has the same modules.
        graph: its stages.
        assumptions: of the user.
    """
    scales = {
        name: ModuleScale.of(name, measured.topology.grids[name], grid, assumptions) for name, grid in topology.grids.items()
    }
    stages = {}
    for at in graph.after:
        computes = _stage_cost(measured, at, scales[at.module])
        stages[at] = StageCost(
            forward_s=computes.forward_s + (_send(measured, at, Phase.FORWARD, scales) if graph.after[at] else 0.0),
            backward_s=computes.backward_s + _send_back(measured, at, graph, scales),
            last_backward_s=computes.last_backward_s + _send_back(measured, at, graph, scales),
            overhead_s=computes.overhead_s,
        )
    messages = {
        (link, phase): _scaled(time_s, max(scales[link.source.module].samples, scales[link.target.module].samples))
        for link in graph.links
        for phase in Phase
        if (time_s := message_time(measured, link, phase)[0]) > 0
    }
    return Costs(stages=stages, messages=messages, rests=measured.rests, meets=measured.meets)


def message_time(measured: Measured, link: StageLink, phase: Phase) -> tuple[float, bool]:
    """The measured time of a message in seconds, and whether it is that of another link, as this one did not exist."""
    key = link.source.module, link.target.module, phase
    found = measured.traffic.messages
    if key in found:
        return found[key] or 0.0, False
    others = [time_s or 0.0 for (_, _, direction), time_s in found.items() if direction is phase]
    return max(others, default=0.0), True


def _stage_cost(measured: Measured, at: StageId, scale: ModuleScale) -> StageCost:
    """Computation and overhead of a stage."""
    factor = scale.samples * scale.tp
    if scale.shares is None:
        found = measured.stages[at]
        forward_s, backward_s, reduces_s = found.forward_s, found.backward_s, found.last_backward_s - found.backward_s
        overhead_s = found.overhead_s
    else:
        own = [cost for stage, cost in measured.stages.items() if stage.module == at.module]
        share = scale.shares[at.stage]
        forward_s, backward_s = share * sum(cost.forward_s for cost in own), share * sum(cost.backward_s for cost in own)
        reduces_s = share * sum(cost.last_backward_s - cost.backward_s for cost in own)
        overhead_s = fmean(cost.overhead_s for cost in own)
    return StageCost(
        forward_s=factor * forward_s,
        backward_s=factor * backward_s,
        last_backward_s=factor * backward_s + reduces_s,
        overhead_s=overhead_s,
    )


def _send_back(measured: Measured, at: StageId, graph: StageGraph, scales: Mapping[str, ModuleScale]) -> float:
    """What a stage takes to hand over gradients; 0 where no stage before it trains."""
    trains = measured.shape.backward and any(not is_frozen(measured, before) for before in graph.before.get(at, ()))
    return _send(measured, at, Phase.BACKWARD, scales) if trains else 0.0


def is_frozen(measured: Measured, at: StageId) -> bool:
    """Whether a stage of any layout has no backward: the stage itself, where the layouts differ all stages of the module."""
    if at in measured.stages:
        return at in measured.shape.frozen
    return all(stage in measured.shape.frozen for stage in measured.stages if stage.module == at.module)


def _send(measured: Measured, at: StageId, phase: Phase, scales: Mapping[str, ModuleScale]) -> float:
    sends = measured.traffic.sends
    known = [time_s for (_, direction), time_s in sends.items() if direction is phase]
    time_s = sends.get((at.module, phase), max(known, default=0.0))
    return _scaled(time_s, scales[at.module].samples)


def _scaled(time_s: float, samples: float) -> float:
    return min(time_s, LATENCY_S) + max(time_s - LATENCY_S, 0.0) * samples
