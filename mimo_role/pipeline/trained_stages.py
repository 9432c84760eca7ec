"""Which stages have a backward: those with parameters to train, and those that they feed."""

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

from mimo_role.errors import ScheduleError
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.topology.module_graph import ModuleGraph
from mimo_role.topology.stage_links import StageId


class TrainedStages:
    """The stages with a backward: all but those of frozen modules, or what all ranks agree on at the first step."""

    def __init__(
        self,
        graph: StageGraph,
        modules: ModuleGraph,
        own_stages: Collection[StageId],
        frozen: Collection[str],
        device: torch.device,
    ) -> None:
        """
        Args:
            graph: the stages of all modules.
            modules: which module feeds which.
            own_stages: this rank's.
            frozen: modules without parameters to train.
            device: where a tensor for all ranks lives.

        Raises:
            ScheduleError: a frozen module that computes a loss, or is fed by one that is not frozen.
        """
        for name in frozen:
            if name not in modules.after:
                raise ScheduleError(f"frozen: no module {name!r}; there are {', '.join(modules.after)}")
            if name in modules.ends:
                raise ScheduleError(
                    f"frozen: {name!r} computes the loss, so it has a backward; set requires_grad_(False) instead"
                )
            if trained := sorted(modules.before(name) - set(frozen)):
                raise ScheduleError(
                    f"frozen: {name!r} takes the output of {', '.join(trained)}, whose gradients pass through it; freeze these "
                    "too, or set requires_grad_(False) on its parameters instead"
                )
        self._graph = graph
        self._own_stages = own_stages
        self._device = device
        self._roots: dict[StageId, Sequence[nn.Module]] = {}
        self._without_backward: frozenset[StageId] | None = frozenset(graph.of_modules(frozen))
        self._frozen_parameters: dict[StageId, list[nn.Parameter]] = {}

    def find_frozen(self, roots: Mapping[str, Sequence[nn.Module]]) -> None:
        """Let the ranks agree, by which of their parts of modules have parameters that require gradients."""
        self._roots = {at: roots[at.module] for at in self._own_stages if at.module in roots}
        self._without_backward = None

    def without_backward(self) -> frozenset[StageId]:
        """The stages without a backward. Collective over the world at the first call after `find_frozen`.

        Raises:
            ScheduleError: parameters train that did not at the first call, or none do on any rank.
        """
        if self._without_backward is None:
            self._without_backward = self._agree()
            for at in self._without_backward & self._roots.keys():
                self._frozen_parameters[at] = [parameter for root in self._roots[at] for parameter in root.parameters()]
        for at, parameters in self._frozen_parameters.items():
            if any(parameter.requires_grad for parameter in parameters):
                raise ScheduleError(
                    f"parameters of {at} require gradients now and did not at the first step, so other ranks send none; make a "
                    "new schedule after changing requires_grad"
                )
        return self._without_backward

    def _agree(self) -> frozenset[StageId]:
        stages = list(self._graph.after)
        own = [at in self._own_stages and self._may_train(at) for at in stages]
        found = torch.tensor(own, dtype=torch.int32, device=self._device)
        largest_over_ranks(found)
        trained = self._graph.reached_from([at for at, flag in zip(stages, found.tolist(), strict=True) if flag])
        if not trained:
            raise ScheduleError(
                "no parameter in modules= requires gradients on any rank; use forward(), or requires_grad_(True)"
            )
        return frozenset(stages) - trained

    def _may_train(self, at: StageId) -> bool:
        return at not in self._roots or _has_trained(self._roots[at])


def largest_over_ranks(found: torch.Tensor) -> None:
    """The largest of all ranks' flags, in place. A rehearsal, whose peers do not exist, replaces it."""
    dist.all_reduce(found, dist.ReduceOp.MAX)


def _has_trained(roots: Sequence[nn.Module]) -> bool:
    return any(parameter.requires_grad for root in roots for parameter in root.parameters())
