"""The bridges over which one rank's stages receive and send in Megatron-Core's schedule."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mimo_role.bridge.bridge import Bridge
from mimo_role.errors import ScheduleError
from mimo_role.megatron.cp_parts import CpParts
from mimo_role.megatron.crossings import Incoming, Outgoing
from mimo_role.megatron.output_forms import ReceivingForm, SendingForm, SentForm, StageForm, WholeForm
from mimo_role.megatron.pipeline_depth import depth_of, total_depth
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.stage_links import StageId, last_stage
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


class RankCrossings:
    """Makes the ends of bridges at one rank."""

    def __init__(
        self, options: CrossingOptions, rank: int, bridge: Callable[..., Bridge], group: Callable[..., dist.ProcessGroup]
    ) -> None:
        """
        Args:
            options: of the micro-batches.
            rank: this process's.
            bridge, group: the context's.

        Raises:
            ScheduleError: a rank is on both sides of a bridge, or runs two modules that take the same output.
            BridgeError: a bridge was made with other splits.
        """
        self._options = options
        self._topology = options.topology
        self._rank = rank
        self._bridge = bridge
        self._group = group
        grids = self._topology.grids
        self.stages = [StageId(name, grids[name].coords(rank)["pp"]) for name in self._topology.modules_of(rank)]
        self.total_stages = total_depth(self._topology)
        self.current_stage = min(depth_of(self._topology, at) for at in self.stages)
        """Of several modules the first: a rank may not have fewer micro-batches under way than one that it feeds."""
        self.incoming: dict[str, Incoming] = {}
        """By the module that sends."""
        self.outgoing: dict[str, list[Outgoing]] = {}
        """By the module of this rank that sends, if it does."""
        for at in self.stages:
            self._add_incoming(at)
            self._add_outgoing(at)

    def _add_incoming(self, at: StageId) -> None:
        if at.stage > 0:
            bridge = self._between_stages(at.module, at.stage - 1)
            self.incoming[at.module] = Incoming(
                bridge, ReceivingForm(bridge.source.lanes), has_gradients=self._trains(at.module), ahead=self.total_stages
            )
            return
        for source in self._topology.after[at.module]:
            if source in self.incoming:
                raise ScheduleError(f"rank {self._rank} runs two modules that take the output of {source!r}; use Schedule1F1B")
            bridge = self._between_modules(source, at.module)
            form = self._received_form(bridge)
            self.incoming[source] = Incoming(bridge, form, has_gradients=self._trains(source), ahead=self.total_stages)

    def _add_outgoing(self, at: StageId) -> None:
        if at != last_stage(self._topology, at.module):
            bridge = self._between_stages(at.module, at.stage)
            self.outgoing[at.module] = [self._outgoing(bridge, StageForm(bridge.source))]
        elif targets := self._topology.module_graph.feeds[at.module]:
            bridges = [self._between_modules(at.module, target) for target in targets]
            self.outgoing[at.module] = [self._outgoing(bridge, self._sent_form(bridge)) for bridge in bridges]

    def _outgoing(self, bridge: Bridge, form: SendingForm) -> Outgoing:
        return Outgoing(
            bridge,
            form,
            has_gradients=self._trains(bridge.source.module),
            ahead=self.total_stages - self.current_stage,
            dtype=self._options.dtype,
        )

    def _sent_form(self, bridge: Bridge) -> SentForm:
        place = bridge.source.place_of(self._rank)
        assert place is not None
        return SentForm(bridge, place, self._options.samples, self._options.tokens.get(bridge.source.module))

    def _received_form(self, bridge: Bridge) -> ReceivingForm:
        place, end = bridge.destination.place_of(self._rank), bridge.destination
        assert place is not None
        if end.cp == 1:
            return ReceivingForm(self._options.samples)
        return WholeForm(self._options.samples, CpParts(end, place, self._group(end.module, "cp")))

    def _between_stages(self, module: str, stage: int) -> Bridge:
        """Each rank has a share of its own, so that its tensor goes to its counterpart."""
        return self._bridge(module, stage=stage, source=TokenSplit(sequence_parallel=True))

    def _between_modules(self, source: str, target: str) -> Bridge:
        split = self._options.splits.get(source, TokenSplit())
        bridge = self._bridge(source, to=target, source=split, destination=TokenSplit())
        if bridge.is_sender and bridge.is_receiver:
            raise ScheduleError(
                f"rank {self._rank} is on both sides of {bridge}, and Megatron-Core's schedule runs each rank once for a "
                "micro-batch; use Schedule1F1B, or modules on ranks of their own"
            )
        return bridge

    def _trains(self, module: str) -> bool:
        return module not in self._options.frozen
