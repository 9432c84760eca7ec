"""JobConfig -> LaunchPlan: all that is decided before launch. It travels as one JSON file."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from launcher import machine
from launcher.errors import ConfigError, PlacementError
from launcher.placement import LOCAL_POOL, Node, place
from launcher.reading import refusal, source_of
from launcher.review import PlanWarning, review
from launcher.schema import Backend, JobConfig, Join, PoolConfig, RuntimeConfig, StartMethod
from mimo_role import GroupOptions, MimoError, ModuleLayout, Topology, TopologyError, UnknownWorldSizeError, environ
from mimo_role.rounds import schedule

STALL_SHARE = 0.9
"""Of a collective's limit: how long ranks may make no progress by default."""
MOST_PLACES = 1 << 17
"""Ranks of all modules together: their plan is some 60 MB of JSON."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What each rank runs. Exactly one of the three is set."""

    script: str | None = None
    """An absolute path."""
    module: str | None = None
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LaunchPlan:
    """A job as it will be started. No process decides again what it says."""

    name: str
    topology: Topology
    nodes: tuple[Node, ...]
    entry: Entry
    backend: Backend
    timeout_s: float
    grace_s: float
    warning_s: float
    stall_timeout_s: float
    """How long ranks may make no progress; 0: as long as they like."""
    stall_timeout_is_default: bool
    """Whether the config leaves it open: then ranks that are busy are let go on, if none waits for another."""
    start_method: StartMethod
    join: Join
    max_restarts: int
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
            "backend": self.backend.value,
            "start_method": self.start_method.value,
            "join": self.join.value,
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
                "backend": Backend(value["backend"]),
                "start_method": StartMethod(value["start_method"]),
                "join": Join(value["join"]),
                "groups": {name: GroupOptions.from_dict(options) for name, options in value["groups"].items()},
                "warnings": tuple(PlanWarning(**warning) for warning in value["warnings"]),
            }
        )


def make_plan(config: JobConfig, config_path: Path, script_args: Sequence[str], overrides: Sequence[str] = ()) -> LaunchPlan:
    """Decide all that a launch needs, and refuse what cannot work.

    Args:
        config: the job.
        config_path: the file it came from; `entry.script` is relative to its folder.
        script_args: arguments after `--` on the command line.
        overrides: the command line's changes to the config, which a message blames where they are at fault.

    Raises:
        ConfigError: the modules make no world, the ranks do not fit the pools, or the entry does not exist.
    """
    try:
        topology = _topology(config)
        _check_places(topology)
        pools = config.pools or {LOCAL_POOL: PoolConfig(procs_per_node=topology.world_size)}
        nodes = place(topology, pools, {name: module.pool for name, module in config.modules.items()})
        groups = {name: module.groups for name, module in config.modules.items() if module.groups != GroupOptions()}
        schedule(topology, groups)  # refuses axes that a module does not have
        found = review(topology, nodes, pools)
        _check_gpus(config.runtime.backend, found)
        entry = _entry(config, config_path, script_args)
    except TopologyError as error:
        raise refusal(source_of(config_path, error.key, overrides), str(error)) from None
    except MimoError as error:
        raise refusal(config_path, str(error)) from None
    return LaunchPlan(
        name=config.name,
        topology=topology,
        nodes=tuple(nodes),
        entry=entry,
        backend=config.runtime.backend,
        timeout_s=config.runtime.timeout_s,
        grace_s=config.runtime.grace_s,
        warning_s=config.runtime.warning_s,
        stall_timeout_s=_stall_timeout_s(config.runtime),
        stall_timeout_is_default=config.runtime.stall_timeout_s is None,
        start_method=config.runtime.start_method,
        join=config.runtime.join or (Join.SCRIPT if config.entry.command else Join.LAUNCHER),
        max_restarts=config.runtime.max_restarts,
        env=config.env,
        module_env={name: module.env for name, module in config.modules.items()},
        groups=groups,
        run_dir=str(_expanded(config.run_dir, "run_dir").absolute()),
        warnings=tuple(found),
    )


def _stall_timeout_s(runtime: RuntimeConfig) -> float:
    """By default somewhat less than a collective's limit: once that is reached, nobody can be asked any more."""
    return STALL_SHARE * runtime.timeout_s if runtime.stall_timeout_s is None else runtime.stall_timeout_s


def _check_places(topology: Topology) -> None:
    """A plan spells out what every rank runs."""
    places = sum(grid.size for grid in topology.grids.values())
    if places > MOST_PLACES:
        raise TopologyError("modules", f"{places} ranks, those that modules share counted for each; a plan takes {MOST_PLACES}")


def _check_gpus(backend: Backend, found: Sequence[PlanWarning]) -> None:
    for warning in found:
        if backend is Backend.NCCL and warning.code == "fewer_gpus_than_ranks":
            raise PlacementError(f"{warning.message}; NCCL takes one for each rank")


def _topology(config: JobConfig) -> Topology:
    """Arrange the modules; `dp: auto` shares out the pools, or this machine where the config names none."""
    if config.pools is not None:
        return Topology.from_modules(config.modules, layout=config.layout, world_size=_slots(config, config.pools))
    try:
        return Topology.from_modules(config.modules, layout=config.layout)
    except UnknownWorldSizeError as unknown:
        try:
            return Topology.from_modules(config.modules, layout=config.layout, world_size=machine.rank_slots())
        except TopologyError as error:
            if error.key != unknown.key:
                raise
            raise ConfigError(
                f"{error} (without pools, auto shares out this machine: {machine.gpus()} GPUs, {machine.cores()} CPU cores)"
            ) from None


def _slots(config: JobConfig, pools: Mapping[str, PoolConfig]) -> int:
    """How many ranks the pools take; where `dp: auto` is on a pool, that pool's and the modules' elsewhere."""
    sizes = {name: pool.nodes * pool.procs_per_node for name, pool in pools.items()}
    pinned = {module.pool for module in config.modules.values() if module.dp == "auto" and module.pool is not None}
    if config.layout is ModuleLayout.COLOCATED or len(pinned) != 1:
        return sum(sizes.values())
    (pool,) = pinned
    elsewhere = [module for module in config.modules.values() if module.pool != pool and module.colocate_with is None]
    return sizes[pool] + sum(module.size or 0 for module in elsewhere)


def _entry(config: JobConfig, config_path: Path, script_args: Sequence[str]) -> Entry:
    args = (*config.args, *script_args)
    if config.entry.script is not None:
        script = (config_path.parent / _expanded(config.entry.script, "entry.script")).absolute()
        if not os.path.isfile(script):  # noqa: PTH113 (a name too long is an error to pathlib)
            what = "is a folder" if os.path.isdir(script) else "no such file"  # noqa: PTH112
            raise ConfigError(f"entry.script={config.entry.script}: {what}: {script} (scripts lie relative to the config)")
        return Entry(script=str(script), args=args)
    if config.entry.module is not None:
        if not _module_exists(config.entry.module, config.env.get("PYTHONPATH", "")):
            raise ConfigError(f"entry.module={config.entry.module}: no such module here or in this Python's packages")
        return Entry(module=config.entry.module, args=args)
    assert config.entry.command is not None
    program = config.entry.command[0]
    if shutil.which(program, path=config.env.get("PATH", environ.get("PATH"))) is None:
        raise ConfigError(f"entry.command={program}: no such program on PATH")
    return Entry(command=config.entry.command, args=args)


def _expanded(path: str, key: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}={path}: {error}") from None


def _module_exists(name: str, python_path: str) -> bool:
    """Look for the top-level package only: finding a submodule would import its parents."""
    found = sys.path
    sys.path = [str(Path.cwd()), *python_path.split(os.pathsep), *found]
    try:
        return find_spec(name.partition(".")[0]) is not None
    except ValueError:
        return False
    finally:
        sys.path = found
