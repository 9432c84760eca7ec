"""Makes a launch plan from a config, or refuses a config that cannot work."""

import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from launcher.config.schema import Backend, JobConfig, Join, PoolConfig, StartMethod
from launcher.config.yaml_reader import refusal, source_of
from launcher.errors import ConfigError, PlacementError
from launcher.host import resources
from launcher.plan.launch_plan import STALL_SHARE, Entry, LaunchPlan, Runtime
from launcher.plan.placement import LOCAL_POOL, place
from launcher.plan.placement_warnings import PlanWarning, review
from mimo_role import GroupOptions, MimoError, ModuleLayout, Topology, TopologyError, UnknownWorldSizeError
from mimo_role.groups.rounds import schedule
from mimo_role.host import environ

MOST_PLACES = 1 << 17
"""Ranks of all modules together: their plan is some 60 MB of JSON."""


def make_plan(config: JobConfig, config_path: Path, script_args: Sequence[str], overrides: Sequence[str] = ()) -> LaunchPlan:
    """Make the plan of a job.

    Args:
        config: the job.
        config_path: the file it came from; `entry.script` is relative to its folder.
        script_args: arguments after `--` on the command line.
        overrides: the command line's changes to the config; an error names the one that caused it.

    Raises:
        ConfigError: the sizes of the modules do not work out, the ranks do not fit the pools, or the entry does not exist.
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
        found += _review_preload(config)
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
        runtime=_runtime(config),
        env=config.env,
        module_env={name: module.env for name, module in config.modules.items()},
        groups=groups,
        run_dir=str(_expanded(config.run_dir, "run_dir").absolute()),
        warnings=tuple(found),
    )


def _runtime(config: JobConfig) -> Runtime:
    runtime = config.runtime
    return Runtime(
        backend=runtime.backend,
        timeout_s=runtime.timeout_s,
        start_method=runtime.start_method,
        preload=runtime.preload,
        join=runtime.join or (Join.SCRIPT if config.entry.command else Join.LAUNCHER),
        max_restarts=runtime.max_restarts,
        grace_s=runtime.grace_s,
        # Less than the limit of a collective: once that is exceeded, the ranks end and cannot be probed any more.
        stall_timeout_s=STALL_SHARE * runtime.timeout_s if runtime.stall_timeout_s is None else runtime.stall_timeout_s,
        stall_timeout_is_default=runtime.stall_timeout_s is None,
        warning_s=runtime.warning_s,
        numa_binding=runtime.numa_binding,
        tensorboard=runtime.tensorboard,
    )


def _check_places(topology: Topology) -> None:
    """A plan lists what every rank runs."""
    places = sum(grid.size for grid in topology.grids.values())
    if places > MOST_PLACES:
        raise TopologyError(
            "modules", f"{places} ranks, those that modules share counted for each; the limit of a plan is {MOST_PLACES}"
        )


def _check_gpus(backend: Backend, found: Sequence[PlanWarning]) -> None:
    for warning in found:
        if backend is Backend.NCCL and warning.code == "fewer_gpus_than_ranks":
            raise PlacementError(f"{warning.message}; NCCL needs one for each rank")


def _review_preload(config: JobConfig) -> Iterator[PlanWarning]:
    if config.runtime.preload and config.entry.command is not None:
        yield PlanWarning("preload_without_fork", "runtime.preload has no effect with entry.command, another program")
    elif config.runtime.preload and config.runtime.start_method is StartMethod.SPAWN:
        yield PlanWarning("preload_without_fork", "runtime.preload has no effect with start_method: spawn; use forkserver")


def _topology(config: JobConfig) -> Topology:
    """Arrange the modules; `dp: auto` takes the free ranks of the pools, or of this machine if there are no pools."""
    if config.pools is not None:
        return Topology.from_modules(config.modules, layout=config.layout, world_size=_slots(config, config.pools))
    try:
        return Topology.from_modules(config.modules, layout=config.layout)
    except UnknownWorldSizeError as unknown:
        try:
            return Topology.from_modules(config.modules, layout=config.layout, world_size=resources.rank_slots())
        except TopologyError as error:
            if error.key != unknown.key:
                raise
            raise ConfigError(
                f"{error} (without pools, auto takes this machine: {resources.gpus()} GPUs, {resources.cores()} CPU cores)"
            ) from None


def _slots(config: JobConfig, pools: Mapping[str, PoolConfig]) -> int:
    """The ranks of all pools; if the module with `dp: auto` has a pool, of that pool and of modules elsewhere."""
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
        if not os.path.isfile(script):  # noqa: PTH113 (pathlib raises for a name that is too long)
            what = "is a folder" if os.path.isdir(script) else "no such file"  # noqa: PTH112
            raise ConfigError(f"entry.script={config.entry.script}: {what}: {script} (relative to the config)")
        return Entry(script=str(script), args=args)
    if config.entry.module is not None:
        if not _module_exists(config.entry.module, config.env.get("PYTHONPATH", "")):
            raise ConfigError(f"entry.module={config.entry.module}: not in the current folder or this Python's packages")
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
