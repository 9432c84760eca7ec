"""The bridges over which one rank's stages receive and send in Megatron-Core's schedule."""

from collections.abc import Callable

import torch.distributed as dist

from mimo_role.bridge.bridge import Bridge
from mimo_role.errors import ScheduleError
from mimo_role.megatron.crossings import Incoming, Outgoing
from mimo_role.megatron.module_bridges import CrossingOptions, ModuleBridges
from mimo_role.megatron.output_forms import ReceivingForm, SendingForm, StageForm
from mimo_role.megatron.pipeline_depth import depth_of, total_depth
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import ModuleLayout
from mimo_role.topology.stage_links import StageId, last_stage


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
            ScheduleError: the layout is colocated, or a rank runs two modules that take the same output.
            BridgeError: a bridge was made with other splits.
        """
        if options.topology.layout is ModuleLayout.COLOCATED:
            raise ScheduleError(
                "Megatron-Core's schedule runs each rank once for a micro-batch, so in a colocated layout a stage would wait "
                "for itself; use ctx.megatron_encoders_first(), Schedule1F1B, or modules on ranks of their own"
            )
        self._options = options
        self._topology = options.topology
        self._rank = rank
        self._bridge = bridge
        self._module_bridges = ModuleBridges(options, rank, bridge, group)
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
            self._add_end(bridge, ReceivingForm(bridge.source.lanes))
            return
        for source in self._topology.after[at.module]:
            bridge = self._module_bridges.between(source, at.module)
            self._add_end(bridge, self._module_bridges.received_form(bridge))

    def _add_end(self, bridge: Bridge, form: ReceivingForm) -> None:
        source = bridge.source.module
        if source in self.incoming:
            raise ScheduleError(f"two modules of rank {self._rank} take the output of {source!r}; use Schedule1F1B")
        self.incoming[source] = Incoming(bridge, form, has_gradients=self._trains(source), ahead=self.total_stages)

    def _add_outgoing(self, at: StageId) -> None:
        if at != last_stage(self._topology, at.module):
            bridge = self._between_stages(at.module, at.stage)
            self.outgoing[at.module] = [self._outgoing(bridge, StageForm(bridge.source))]
        elif targets := self._topology.module_graph.feeds[at.module]:
            bridges = [self._module_bridges.between(at.module, target) for target in targets]
            self.outgoing[at.module] = [self._outgoing(bridge, self._module_bridges.sent_form(bridge)) for bridge in bridges]

    def _outgoing(self, bridge: Bridge, form: SendingForm) -> Outgoing:
        return Outgoing(
            bridge,
            form,
            has_gradients=self._trains(bridge.source.module),
            ahead=self.total_stages - self.current_stage,
            dtype=self._options.dtype,
        )

    def _between_stages(self, module: str, stage: int) -> Bridge:
        """Each rank has a share of its own, so that its tensor goes to its counterpart."""
        return self._bridge(module, stage=stage, source=TokenSplit(sequence_parallel=True))

    def _trains(self, module: str) -> bool:
        return module not in self._options.frozen
