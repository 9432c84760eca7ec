"""The launch plan: all that is decided before a job starts. It travels as one JSON file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.config.schema import Backend, Join, StartMethod
from launcher.plan.placement import Node
from launcher.plan.placement_warnings import PlanWarning
from mimo_role import GroupOptions, Topology

STALL_SHARE = 0.9
"""Of a collective's limit: how long ranks may make no progress by default."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What each rank runs. Exactly one of the three is set."""

    script: str | None = None
    """An absolute path."""
    module: str | None = None
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """How ranks start, join and stop: the config's `runtime` section, with what it leaves open decided."""

    backend: Backend
    timeout_s: float
    start_method: StartMethod
    join: Join
    max_restarts: int
    grace_s: float
    stall_timeout_s: float
    """How long ranks may make no progress; 0: as long as they like."""
    stall_timeout_is_default: bool
    """Whether the config leaves it open: then ranks that are busy are let go on, if none waits for another."""
    warning_s: float

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Runtime":
        """The inverse of `dataclasses.asdict`, after JSON too."""
        kinds = {"backend": Backend, "start_method": StartMethod, "join": Join}
        return cls(**dict(value) | {name: kind(value[name]) for name, kind in kinds.items()})


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job as it will be started. No process decides again what it says."""

    name: str
    topology: Topology
    nodes: tuple[Node, ...]
    entry: Entry
    runtime: Runtime
    env: Mapping[str, str]
    """Environment of every rank."""
    module_env: Mapping[str, Mapping[str, str]]
    """Environment of one module's ranks, over `env`."""
    groups: Mapping[str, GroupOptions]
    """Each module's group options, where they are not the defaults."""
    run_dir: str
    """An absolute path."""
    warnings: tuple[PlanWarning, ...] = ()
    verbose: bool = False
    """Whether ranks say how joining goes."""
    preflight: bool = True
    """Whether ranks are compared before they join."""

    def env_of(self, rank: int) -> dict[str, str]:
        """The configured environment of one rank; where modules share it, a later module's wins."""
        merged = dict(self.env)
        for name in self.topology.modules_of(rank):
            merged |= self.module_env[name]
        return merged

    def node(self, name: str) -> Node:
        """One of the nodes.

        Raises:
            KeyError: there is no such node.
        """
        return {node.name: node for node in self.nodes}[name]

    def under(self, folder: Path) -> "LaunchPlan":
        """The plan with its relative paths, if it has any, below a folder."""
        script = self.entry.script and str(folder / self.entry.script)
        return replace(self, entry=replace(self.entry, script=script), run_dir=str(folder / self.run_dir))

    @property
    def digest(self) -> str:
        """SHA-256 of all that nodes must agree on. Paths may differ from one to the other."""
        value = json.loads(self.to_json())
        for name in ("run_dir", "warnings", "verbose", "preflight"):
            del value[name]
        value["entry"]["script"] = self.entry.script and Path(self.entry.script).name
        return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """The plan as one JSON object."""
        value = {field.name: getattr(self, field.name) for field in fields(self)} | {
            "topology": self.topology.as_dict(),
            "nodes": [asdict(node) for node in self.nodes],
            "entry": asdict(self.entry),
            "runtime": {name: item.value if isinstance(item, Enum) else item for name, item in asdict(self.runtime).items()},
            "env": dict(self.env),
            "module_env": {name: dict(env) for name, env in self.module_env.items()},
            "groups": {name: options.as_dict() for name, options in self.groups.items()},
            "warnings": [asdict(warning) for warning in self.warnings],
        }
        return json.dumps(value, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "LaunchPlan":
        """The inverse of `to_json`."""
        value: dict[str, Any] = json.loads(text)
        entry = value["entry"]
        return cls(
            **value
            | {
                "topology": Topology.from_dict(value["topology"]),
                "nodes": tuple(Node(**node) for node in value["nodes"]),
                "entry": Entry(
                    script=entry["script"],
                    module=entry["module"],
                    command=None if entry["command"] is None else tuple(entry["command"]),
                    args=tuple(entry["args"]),
                ),
                "runtime": Runtime.from_dict(value["runtime"]),
                "groups": {name: GroupOptions.from_dict(options) for name, options in value["groups"].items()},
                "warnings": tuple(PlanWarning(**warning) for warning in value["warnings"]),
            }
        )
