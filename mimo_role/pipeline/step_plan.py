"""What all ranks know of one step, what one rank runs in it, and what the step gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.bridge import Bridge
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.stage_tensors import Named, Specs, Tensors
from mimo_role.pipeline.timeline import Action
from mimo_role.topology.stage_links import StageId, StageLink

Batch = TypeVar("Batch")


@dataclass
class StepResults:
    """The losses and outputs of this rank in one step, by module, in the order of the micro-batches."""

    losses: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """Detached."""
    auxiliary: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """The auxiliary losses, detached."""
    outputs: dict[str, list[Any]] = field(default_factory=dict)
    """Without backwards: what `run` returned where otherwise a loss is computed."""


@dataclass(frozen=True)
class StageOutput:
    """The return value of `run` for a stage with an auxiliary loss, such as a balancing loss of its experts."""

    output: Tensors
    """What `run` returns for other stages."""
    loss: torch.Tensor
    """A scalar. Its backward runs with that of `output`, where the loss is computed with that of the loss."""


@dataclass(frozen=True)
class Pipeline(Generic[Batch]):
    """The stages that one rank runs; `Schedule1F1B` documents the functions."""

    run: Callable[..., Any]
    spec_of: Callable[[StageId, Batch], Specs]
    losses_of: Mapping[str, Callable[[Any, Batch], torch.Tensor]]
    """By the modules that compute a loss."""
    graph: StageGraph
    own_stages: frozenset[StageId]
    bridge_of: Callable[[StageLink, int], Bridge]
    """The bridge of a link for the tensor with this number."""
    slack: int

    def names_for(self, specs: Named[ActivationSpec], link: StageLink) -> list[str]:
        """The tensors that cross a link; they are numbered in this order."""
        return [name for name in specs.values if link.target in self.graph.targets(link.source, name)]


class Piece(NamedTuple):
    """One tensor of one micro-batch, and the link that it crosses."""

    link: StageLink
    micro_batch: int
    number: int
    """Of the tensor, among those that cross the link."""
    name: str
    checksum: int
    """Of the names of all tensors that cross the link."""


@dataclass(frozen=True)
class StepPlan:
    """What all ranks know of a step."""

    frozen: frozenset[StageId]
    """Stages without a backward."""
    per_run: Mapping[StageId, int]
    """Micro-batches that a stage runs at once."""
    limits: Mapping[StageId, int]
    """The largest number of runs that each stage has begun and not completed."""
    backward: bool
    """Whether there are backwards."""

    def trains(self, at: StageId) -> bool:
        """Whether a stage has backwards."""
        return self.backward and at not in self.frozen

    def micro_batches(self, action: Action) -> range:
        """The micro-batches of an action."""
        per_run = self.per_run[action.at]
        return range(action.number * per_run, (action.number + 1) * per_run)
