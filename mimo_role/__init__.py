"""What each process of a multimodal training job runs: its role, its place, its groups.

`current()`, `init()`, `shutdown()` and `RoleContext` need torch and load it on first use; the rest does not.
"""

from typing import TYPE_CHECKING, Any

from mimo_role.environ import RankEnviron
from mimo_role.errors import (
    AxisError,
    BridgeError,
    ContextError,
    EnvironError,
    MimoError,
    RankNotInGridError,
    TopologyError,
    TopologyMismatchError,
)
from mimo_role.grid import RankGrid
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout, ModuleStageInfo, RankRole
from mimo_role.sizing import ModuleSizes
from mimo_role.topology import Topology

if TYPE_CHECKING:
    from mimo_role.bridge import Bridge
    from mimo_role.context import RoleContext, current, init, shutdown

__version__ = "0.1.0"

__all__ = [
    "MIMO_LANGUAGE_MODULE_KEY",
    "AxisError",
    "Bridge",
    "BridgeError",
    "ContextError",
    "EnvironError",
    "MimoError",
    "ModuleLayout",
    "ModuleSizes",
    "ModuleStageInfo",
    "RankEnviron",
    "RankGrid",
    "RankNotInGridError",
    "RankRole",
    "RoleContext",
    "Topology",
    "TopologyError",
    "TopologyMismatchError",
    "current",
    "init",
    "shutdown",
]

_WITH_TORCH = {
    "Bridge": "mimo_role.bridge",
    "RoleContext": "mimo_role.context",
    "current": "mimo_role.context",
    "init": "mimo_role.context",
    "shutdown": "mimo_role.context",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_WITH_TORCH[name]), name)
    globals()[name] = value
    return value
