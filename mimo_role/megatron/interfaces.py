"""What a context has for Megatron-Core. Its parts are imported when they are asked for: most jobs have none of it."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from mimo_role.bridge.bridge import Bridge
from mimo_role.groups.options import GroupOptions
from mimo_role.groups.process_groups import ProcessGroups
from mimo_role.monitoring.heartbeat import Heartbeat
from mimo_role.monitoring.recorder import Recorder
from mimo_role.resharding.samples import TokenSplit
from mimo_role.role import RankRole
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

if TYPE_CHECKING:
    from mimo_role.megatron.encoders_first import EncodersFirst
    from mimo_role.megatron.pipeline_communicator import PipelineCommunicator


class MegatronInterfaces:
    """A base of `RoleContext`, over its groups and bridges."""

    topology: Topology
    rank: int
    role: RankRole
    heartbeat: Heartbeat
    recorder: Recorder
    _options: Mapping[str, GroupOptions]
    _groups: ProcessGroups
    group: Callable[..., dist.ProcessGroup]
    bridge: Callable[..., Bridge]
    _own_grid: Callable[[str], RankGrid]

    def megatron_grid_map(self) -> dict[str, Any]:
        """Every module's grid as Megatron-Core's own `HyperCommGrid`, filled with this context's groups; none is created.

        `shutdown()` destroys the groups; do not call the grids' `destroy()`.

        Raises:
            ContextError: Megatron-Core is not installed.
        """
        from mimo_role.megatron import adapters

        return adapters.grid_map(self.topology, self._options, self.rank, self.group)

    def megatron_process_groups(self, module: str) -> Any:
        """A module's groups as Megatron-Core's `ProcessGroupCollection`; none is created.

        The language module's embedding groups need `groups: {families: megatron}` if it has more than two stages.

        Raises:
            AxisError: there is no such module, this rank does not run it, or its options do not include a group that is needed.
            ContextError: Megatron-Core is not installed.
        """
        from mimo_role.megatron import adapters

        self._own_grid(module)
        return adapters.process_groups(self.topology, module, self.rank, self.group, self._groups.get_ends)

    def megatron_multi_module_process_groups(self) -> Any:
        """The groups of all of this rank's modules as Megatron-Core's `MultiModuleProcessGroupCollection`; none is created.

        Its schedules take it as `pg_collection`.

        Raises:
            AxisError: a module's options do not include a group that is needed.
            ContextError: Megatron-Core is not installed, or has no such class: 0.19 and later have it.
        """
        from mimo_role.megatron import adapters

        return adapters.multi_module_process_groups(self.role.modules, self.megatron_process_groups)

    def megatron_pipeline_communicator(
        self,
        config: Any,
        *,
        samples: int,
        tokens: Mapping[str, int] | None = None,
        splits: Mapping[str, TokenSplit] | None = None,
        frozen: Collection[str] = (),
    ) -> "PipelineCommunicator":
        """This context's bridges for Megatron-Core's schedule, as its `p2p_communicator`, with the same arguments on all ranks.

        Outputs of modules are `[tokens, hidden]`, samples behind each other, or `[sequence, batch, hidden]`. They arrive in the
        same form, whole on each tp and cp rank; gradients are summed over cp. Lanes may have any numbers.

        Args:
            config: Megatron-Core's `ModelParallelConfig`; what crosses has its `pipeline_dtype`.
            samples: of a micro-batch over all lanes; each lane has `lane_samples(samples, lanes, lane)`.
            tokens: by module with outputs `[tokens, hidden]`, the tokens of each sample, if fixed; others:
                `mimo_role.megatron.set_token_counts`.
            splits: by module, how its ranks divide the tokens of a sample in their outputs; default: `TokenSplit()`.
            frozen: modules without parameters to train: no gradients come back to them.

        Raises:
            ScheduleError: an argument that does not fit the modules, or a colocated layout.
            BridgeError: a bridge exists already with other splits.
        """
        from mimo_role.megatron.module_bridges import crossing_options
        from mimo_role.megatron.pipeline_communicator import PipelineCommunicator
        from mimo_role.megatron.rank_crossings import RankCrossings

        options = crossing_options(self.topology, config, samples, tokens, splits, frozen)
        crossings = RankCrossings(options, self.rank, self.bridge, self.group)
        return PipelineCommunicator(self.topology, config, crossings, self.heartbeat, self.recorder)

    def megatron_encoders_first(
        self,
        config: Any,
        *,
        samples: int,
        tokens: Mapping[str, int] | None = None,
        splits: Mapping[str, TokenSplit] | None = None,
        frozen: Collection[str] = (),
    ) -> "EncodersFirst":
        """Encoders beside Megatron-Core's schedule in a colocated layout, where the language model may have several stages.

        Args:
            config, samples, tokens, splits, frozen: as for `megatron_pipeline_communicator`.

        Raises:
            ScheduleError: the layout is not colocated, a module does not feed the language model directly or has several
                stages, or an argument does not fit the modules.
            BridgeError: a bridge exists already with other splits.
        """
        from mimo_role.megatron.encoders_first import EncodersFirst
        from mimo_role.megatron.module_bridges import ModuleBridges, crossing_options

        options = crossing_options(self.topology, config, samples, tokens, splits, frozen)
        bridges = ModuleBridges(options, self.rank, self.bridge, self.group)
        return EncodersFirst(self.topology, bridges, tuple(frozen), self.heartbeat)
