"""What each process of a multimodal training job runs: its role, its place, its groups.

Every name loads on first use. `current()`, `init()`, `shutdown()`, `RoleContext`, `RandomStreams`, `HyperCommGrid`, `Bridge`,
`ActivationSpec`, `Passage`, `cross_together`, `Schedule1F1B` and `StageOutput` need torch; the rest does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_role.bridge.autograd import Passage, cross_together
    from mimo_role.bridge.bridge import Bridge
    from mimo_role.bridge.handshake import ActivationSpec
    from mimo_role.context import RoleContext, current, init, shutdown
    from mimo_role.errors import (
        AxisError,
        BridgeError,
        ContextError,
        EnvironError,
        GradientError,
        GridError,
        MimoError,
        RankNotInGridError,
        ScheduleError,
        TopologyError,
        TopologyMismatchError,
        UnknownWorldSizeError,
        WorldSizeError,
    )
    from mimo_role.groups.families import GroupOptions, NcclOptions
    from mimo_role.megatron.hyper_comm_grid import HyperCommGrid
    from mimo_role.pipeline.schedule import Schedule1F1B, StageOutput
    from mimo_role.pipeline.timeline import StageId
    from mimo_role.preemption.notice import REQUEUE_EXIT_CODE, Notice, listen, notice, shield_worker
    from mimo_role.rank_environ import RankEnviron
    from mimo_role.resharding.lane_balancing import balanced_lanes
    from mimo_role.resharding.samples import Samples, TokenSplit, lane_samples
    from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout, ModuleStageInfo, RankRole
    from mimo_role.topology.grid import RankGrid
    from mimo_role.topology.sizing import ModuleSizes
    from mimo_role.topology.topology import Topology
    from mimo_role.training.random_streams import RandomStreams
    from mimo_role.training.seeding import megatron_seeds

__version__ = "0.1.0"

__all__ = [
    "MIMO_LANGUAGE_MODULE_KEY",
    "REQUEUE_EXIT_CODE",
    "ActivationSpec",
    "AxisError",
    "Bridge",
    "BridgeError",
    "ContextError",
    "EnvironError",
    "GradientError",
    "GridError",
    "GroupOptions",
    "HyperCommGrid",
    "MimoError",
    "ModuleLayout",
    "ModuleSizes",
    "ModuleStageInfo",
    "NcclOptions",
    "Notice",
    "Passage",
    "RandomStreams",
    "RankEnviron",
    "RankGrid",
    "RankNotInGridError",
    "RankRole",
    "RoleContext",
    "Samples",
    "Schedule1F1B",
    "ScheduleError",
    "StageId",
    "StageOutput",
    "TokenSplit",
    "Topology",
    "TopologyError",
    "TopologyMismatchError",
    "UnknownWorldSizeError",
    "WorldSizeError",
    "balanced_lanes",
    "cross_together",
    "current",
    "init",
    "lane_samples",
    "listen",
    "megatron_seeds",
    "notice",
    "shield_worker",
    "shutdown",
]

_HOMES = {
    "ActivationSpec": "bridge.handshake",
    "AxisError": "errors",
    "balanced_lanes": "resharding.lane_balancing",
    "Bridge": "bridge.bridge",
    "BridgeError": "errors",
    "ContextError": "errors",
    "cross_together": "bridge.autograd",
    "current": "context",
    "EnvironError": "errors",
    "GradientError": "errors",
    "GridError": "errors",
    "GroupOptions": "groups.families",
    "HyperCommGrid": "megatron.hyper_comm_grid",
    "init": "context",
    "lane_samples": "resharding.samples",
    "listen": "preemption.notice",
    "megatron_seeds": "training.seeding",
    "MIMO_LANGUAGE_MODULE_KEY": "role",
    "MimoError": "errors",
    "ModuleLayout": "role",
    "ModuleSizes": "topology.sizing",
    "ModuleStageInfo": "role",
    "NcclOptions": "groups.families",
    "Notice": "preemption.notice",
    "notice": "preemption.notice",
    "Passage": "bridge.autograd",
    "RandomStreams": "training.random_streams",
    "RankEnviron": "rank_environ",
    "RankGrid": "topology.grid",
    "RankNotInGridError": "errors",
    "RankRole": "role",
    "REQUEUE_EXIT_CODE": "preemption.notice",
    "RoleContext": "context",
    "Samples": "resharding.samples",
    "Schedule1F1B": "pipeline.schedule",
    "ScheduleError": "errors",
    "shield_worker": "preemption.notice",
    "shutdown": "context",
    "StageId": "pipeline.timeline",
    "StageOutput": "pipeline.schedule",
    "TokenSplit": "resharding.samples",
    "Topology": "topology.topology",
    "TopologyError": "errors",
    "TopologyMismatchError": "errors",
    "UnknownWorldSizeError": "errors",
    "WorldSizeError": "errors",
}


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"mimo_role.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
