"""What each process of a multimodal training job runs: its role, its place, its groups.

Every name loads on first use. `current()`, `init()`, `shutdown()`, `RoleContext`, `RandomStreams`, `HyperCommGrid`, `Bridge`,
`ActivationSpec`, `Passage`, `cross_together`, `Schedule1F1B` and `StageOutput` need torch; the rest does not.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mimo_role.activations import ActivationSpec
    from mimo_role.balance import balanced_lanes
    from mimo_role.bridge import Bridge
    from mimo_role.bridge_autograd import Passage, cross_together
    from mimo_role.context import RoleContext, current, init, shutdown
    from mimo_role.environ import RankEnviron
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
    from mimo_role.families import GroupOptions, NcclOptions
    from mimo_role.grid import RankGrid
    from mimo_role.hyper_comm_grid import HyperCommGrid
    from mimo_role.notices import REQUEUE_EXIT_CODE, Notice, listen, notice, shield_worker
    from mimo_role.random_streams import RandomStreams
    from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout, ModuleStageInfo, RankRole
    from mimo_role.samples import Samples, TokenSplit, lane_samples
    from mimo_role.schedule import Schedule1F1B, StageOutput
    from mimo_role.seeding import megatron_seeds
    from mimo_role.sizing import ModuleSizes
    from mimo_role.timeline import StageId
    from mimo_role.topology import Topology

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
    "ActivationSpec": "activations",
    "AxisError": "errors",
    "balanced_lanes": "balance",
    "Bridge": "bridge",
    "BridgeError": "errors",
    "ContextError": "errors",
    "cross_together": "bridge_autograd",
    "current": "context",
    "EnvironError": "errors",
    "GradientError": "errors",
    "GridError": "errors",
    "GroupOptions": "families",
    "HyperCommGrid": "hyper_comm_grid",
    "init": "context",
    "lane_samples": "samples",
    "listen": "notices",
    "megatron_seeds": "seeding",
    "MIMO_LANGUAGE_MODULE_KEY": "role",
    "MimoError": "errors",
    "ModuleLayout": "role",
    "ModuleSizes": "sizing",
    "ModuleStageInfo": "role",
    "NcclOptions": "families",
    "Notice": "notices",
    "notice": "notices",
    "Passage": "bridge_autograd",
    "RandomStreams": "random_streams",
    "RankEnviron": "environ",
    "RankGrid": "grid",
    "RankNotInGridError": "errors",
    "RankRole": "role",
    "REQUEUE_EXIT_CODE": "notices",
    "RoleContext": "context",
    "Samples": "samples",
    "Schedule1F1B": "schedule",
    "ScheduleError": "errors",
    "shield_worker": "notices",
    "shutdown": "context",
    "StageId": "timeline",
    "StageOutput": "schedule",
    "TokenSplit": "samples",
    "Topology": "topology",
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
