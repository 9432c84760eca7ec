"""Predicts the step of one layout from another one's. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from launcher.advise.basis import basis_of
from launcher.advise.candidates import Layout
from launcher.advise.cost_model import Assumptions, costs_of, is_frozen
from launcher.advise.measured import Measured, as_destinations
from launcher.advise.simulator import Program, StepShape, least_step_time, ranks_with_equal_stages, step_time
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a layout is predicted to take."""

    layout: Layout
    topology: Topology
    step_s: float
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

    def predict(self, layout: Layout, topology: Topology) -> Prediction:
        """Play the step of a layout."""
        graph, shape = self._pipeline(topology)
        key = tuple(graph.after), frozenset(ranks_with_equal_stages(graph))
        if key not in self._programs:
            self._programs[key] = Program(graph, shape)
        step_s = step_time(self._programs[key], costs_of(self.measured, topology, graph, self._assumptions))
        basis = basis_of(self.measured, dict(layout), topology, self._assumptions)
        return Prediction(layout=layout, topology=topology, step_s=step_s, basis=basis)

    def least(self, topology: Topology) -> float:
        """A lower bound of the step of a layout, in seconds."""
        graph, shape = self._pipeline(topology)
        return least_step_time(graph, shape, costs_of(self.measured, topology, graph, self._assumptions))

    def _pipeline(self, topology: Topology) -> tuple[StageGraph, StepShape]:
        graph = StageGraph(topology, as_destinations(self.measured.destinations))
        frozen = frozenset(at for at in graph.after if is_frozen(self.measured, at))
        return graph, replace(self.measured.shape, frozen=frozen)
