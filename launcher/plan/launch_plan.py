"""The launch plan: everything that is decided before a job starts. Its file format is JSON."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from pathlib import Path

from launcher.config.conversion import build
from launcher.config.schema import Backend, Join, NumaBinding, StartMethod
from launcher.plan.placement import Node
from launcher.plan.placement_warnings import PlanWarning
from mimo_role import GroupOptions, Topology

STALL_SHARE = 0.9
"""The default of `stall_timeout_s`, as a share of `timeout_s`."""


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
    """How ranks are started, joined and stopped: the config's `runtime` section with all defaults resolved."""

    backend: Backend
    timeout_s: float
    start_method: StartMethod
    preload: tuple[str, ...]
    """Modules that the process from which ranks are forked imports for all of them."""
    join: Join
    max_restarts: int
    grace_s: float
    stall_timeout_s: float
    """Seconds without progress on any rank before the job is ended; 0: no limit."""
    stall_timeout_is_default: bool
    """Whether the config does not set it: then the job is ended only if some ranks wait for others."""
    warning_s: float
    numa_binding: NumaBinding | None
    """Which cores near its GPU each rank is bound to."""
    tensorboard: bool
    """Whether node 0 writes TensorBoard's events, too."""


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job as it is started. Every process of the job reads it and decides nothing else."""

    name: str
    topology: Topology
    nodes: tuple[Node, ...]
    entry: Entry
    runtime: Runtime
    env: Mapping[str, str]
    """Environment variables of every rank."""
    module_env: Mapping[str, Mapping[str, str]]
    """Environment variables of one module's ranks; they override `env`."""
    groups: Mapping[str, GroupOptions]
    """The group options of each module that does not have the defaults."""
    run_dir: str
    """An absolute path."""
    warnings: tuple[PlanWarning, ...] = ()
    verbose: bool = False
    """Whether ranks log the steps of joining."""
    preflight: bool = True
    """Whether ranks are compared before they join."""
    debug: tuple[int, ...] = ()
    """The ranks whose debuggers may use the terminal."""
    debug_port: int | None = None
    """Where the first of them listens for debugpy's clients; the next rank on the next port."""

    def env_of(self, rank: int) -> dict[str, str]:
        """The configured environment of one rank; of modules that share the rank, the last one has precedence."""
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

    @property
    def is_forked(self) -> bool:
        """Whether ranks are forked from a process that has imported torch."""
        return self.entry.command is None and self.runtime.start_method is StartMethod.FORKSERVER

    def under(self, folder: Path) -> "LaunchPlan":
        """The plan with its relative paths resolved against a folder."""
        script = self.entry.script and str(folder / self.entry.script)
        return replace(self, entry=replace(self.entry, script=script), run_dir=str(folder / self.run_dir))

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the nodes must agree on. Paths may differ between nodes."""
        value = json.loads(self.to_json())
        for name in ("run_dir", "warnings", "verbose", "preflight", "debug", "debug_port"):
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
        """The inverse of `to_json`.

        Raises:
            ValueError: not JSON.
            InvalidValueError: a field that is missing, unknown or of the wrong type.
        """
        return build(cls, json.loads(text))
