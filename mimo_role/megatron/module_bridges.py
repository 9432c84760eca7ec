"""The bridges between modules, and what crosses them in a micro-batch."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.bridge.bridge import Bridge
from mimo_role.errors import ScheduleError
from mimo_role.megatron.cp_parts import CpParts
from mimo_role.megatron.output_forms import ReceivingForm, SentForm, WholeForm
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology


@dataclass(frozen=True, kw_only=True)
class CrossingOptions:
    """What crosses in a micro-batch; `RoleContext.megatron_pipeline_communicator` documents the fields.

    Raises:
        ScheduleError: no samples, an unknown module, one that cannot be frozen, or modules after the language module.
    """

    topology: Topology
    samples: int
    tokens: Mapping[str, int]
    splits: Mapping[str, TokenSplit]
    frozen: Collection[str]
    dtype: torch.dtype | None
    """Of all that crosses; `None` for any."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ScheduleError(f"samples={self.samples}; a micro-batch has 1 or more, over all lanes")
        graph = self.topology.module_graph
        if graph.ends != (MIMO_LANGUAGE_MODULE_KEY,):
            raise ScheduleError(
                f"{', '.join(graph.ends)} compute the loss, but Megatron-Core's schedule takes it from "
                f"{MIMO_LANGUAGE_MODULE_KEY!r}; use Schedule1F1B"
            )
        for what, names in (("tokens", self.tokens), ("splits", self.splits), ("frozen", self.frozen)):
            for name in names:
                if name not in graph.after:
                    raise ScheduleError(f"{what}: no module {name!r}; there are {', '.join(graph.after)}")
        for name in self.frozen:
            if name in graph.ends:
                raise ScheduleError(f"frozen: {name!r} computes the loss, so it has a backward; set requires_grad_(False)")
            if trained := sorted(graph.before(name) - set(self.frozen)):
                raise ScheduleError(f"frozen: {name!r} takes the output of {', '.join(trained)}; freeze these too")


def crossing_options(
    topology: Topology,
    config: Any,
    samples: int,
    tokens: Mapping[str, int] | None,
    splits: Mapping[str, TokenSplit] | None,
    frozen: Collection[str],
) -> CrossingOptions:
    """From the arguments of `RoleContext.megatron_pipeline_communicator`.

    Raises:
        ScheduleError: as for `CrossingOptions`.
    """
    return CrossingOptions(
        topology=topology,
        samples=samples,
        tokens=tokens or {},
        splits=splits or {},
        frozen=frozen,
        dtype=config.pipeline_dtype,
    )


class ModuleBridges:
    """Makes bridges between modules, and the forms of what one rank sends and receives over them."""

    def __init__(
        self, options: CrossingOptions, rank: int, bridge: Callable[..., Bridge], group: Callable[..., dist.ProcessGroup]
    ) -> None:
        """
        Args:
            options: of the micro-batches.
            rank: this process's.
            bridge, group: the context's.
        """
        self._options = options
        self._rank = rank
        self._bridge = bridge
        self._group = group

    def between(self, source: str, target: str) -> Bridge:
        """The bridge from one module to another.

        Raises:
            BridgeError: it was made with other splits.
        """
        split = self._options.splits.get(source, TokenSplit())
        return self._bridge(source, to=target, source=split, destination=TokenSplit())

    def sent_form(self, bridge: Bridge) -> SentForm:
        """The form of what this rank sends."""
        place = bridge.source.place_of(self._rank)
        assert place is not None
        return SentForm(bridge, place, self._options.samples, self._options.tokens.get(bridge.source.module))

    def received_form(self, bridge: Bridge) -> ReceivingForm:
        """The form of what this rank receives."""
        place, end = bridge.destination.place_of(self._rank), bridge.destination
        assert place is not None
        if end.cp == 1:
            return ReceivingForm(self._options.samples)
        return WholeForm(self._options.samples, CpParts(end, place, self._group(end.module, "cp")))
