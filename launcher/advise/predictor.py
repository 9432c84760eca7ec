"""Predicts the step of one layout from another one's. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.advise.basis import basis_of
from launcher.advise.candidates import Layout
from launcher.advise.cost_model import Assumptions, costs_of, is_frozen
from launcher.advise.measured import Measured
from launcher.advise.recorded_shape import as_destinations
from launcher.advise.simulator import Program, least_step_time, step_time
from mimo_role import ModuleLayout, ModuleSizes, Topology
from mimo_role.pipeline.stage_graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a layout is predicted to take."""

    layout: Layout
    topology: Topology
    step_s: float
    """Played, and corrected."""
    basis: Sequence[str]
    """What the number rests on, beside `basis_of_run`."""


class Predictor:
    """Predicts the step of layouts. Pipelines that differ only in their numbers of lanes have one order of actions."""

    def __init__(self, measured: Measured, assumptions: Assumptions) -> None:
        """
        Args:
            measured: the run.
            assumptions: what is known beside the recordings.
        """
        self.measured = measured
        self._assumptions = assumptions
        self._programs: dict[object, Program] = {}
        self.present_s = self.play(measured.topology)
        """The step of the layout that ran, as it was played."""
        self.correction = 1.0 if measured.step_s is None else measured.step_s / self.present_s
        """What all predictions are multiplied by: what the model leaves out takes as large a share of other layouts."""

    def predict(self, layout: Layout, topology: Topology) -> Prediction:
        """Play the step of a layout, and correct it."""
        basis = basis_of(self.measured, topology, self._program(topology).graph, self._assumptions)
        return Prediction(layout=layout, topology=topology, step_s=self.correction * self.play(topology), basis=basis)

    def play(self, topology: Topology) -> float:
        """The step of a layout in seconds, without a correction."""
        program = self._program(topology)
        return step_time(program, costs_of(self.measured, topology, program.graph, self._assumptions))

    def least(self, topology: Topology) -> float:
        """A lower bound of the predicted step of a layout, in seconds."""
        program = self._program(topology)
        costs = costs_of(self.measured, topology, program.graph, self._assumptions)
        return self.correction * least_step_time(program, costs)

    def _program(self, topology: Topology) -> Program:
        """The actions of a layout's step: where no modules share ranks, those of its stages with one rank each."""
        stages = {name: grid.axis_size("pp") for name, grid in topology.grids.items()}
        shares = topology.world_size < sum(grid.size for grid in topology.grids.values())
        key = topology.to_json() if shares else tuple(stages.items())
        if key not in self._programs:
            after = {name: tuple(sources) for name, sources in topology.after.items()}
            small = topology if shares else _one_rank_per_stage(stages, after)
            graph = StageGraph(small, as_destinations(self.measured.destinations))
            frozen = frozenset(at for at in graph.after if is_frozen(self.measured, at))
            self._programs[key] = Program(graph, replace(self.measured.shape, frozen=frozen))
        return self._programs[key]


def _one_rank_per_stage(stages: Mapping[str, int], after: Mapping[str, tuple[str, ...]]) -> Topology:
    sizes = {name: ModuleSizes(pp=pp, after=after[name] or None) for name, pp in stages.items()}
    layout = ModuleLayout.COLOCATED if len(sizes) == 1 else ModuleLayout.NON_COLOCATED
    return Topology.from_modules(sizes, layout=layout)
