"""From a YAML file and overrides to a `JobConfig`, or to one error that names file and key."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from launcher.config.conversion import InvalidValueError, build
from launcher.config.literals import with_source
from launcher.config.schema import JobConfig, Join, ModuleConfig, RuntimeConfig
from launcher.config.yaml_reader import as_config_errors, read, refusal, source_of

_RESERVED_VARIABLES = re.compile(
    r"(MIMO|TORCHELASTIC|ROLE|GROUP)_.*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
)
"""Environment variables that mimo-launch sets."""


def load(path: Path, overrides: list[str]) -> tuple[JobConfig, str]:
    """Read a config file and apply `key.path=value` overrides to it.

    Returns:
        The job, and its config with all interpolations resolved, as YAML.

    Raises:
        ConfigError: no such file, not YAML, an interpolation that fails, an unknown key, a value of the wrong type or
            out of range.
    """
    try:
        with as_config_errors(path, overrides):
            plain, source = read(path, overrides)
            _without_pools(plain)
            config = build(JobConfig, with_source(plain, source))
            _check(config)
            return config, _resolved_text(plain, config, path)
    except InvalidValueError as error:
        raise refusal(source_of(path, error.key, overrides), str(error)) from None


def _without_pools(plain: Any) -> None:
    """`pools=null` runs a cluster's config on one machine: the modules' pools no longer apply."""
    if isinstance(plain, dict) and "pools" in plain and plain["pools"] is None and isinstance(plain.get("modules"), dict):
        for module in plain["modules"].values():
            if isinstance(module, dict):
                module.pop("pool", None)


def _resolved_text(plain: Any, config: JobConfig, path: Path) -> str:
    """The config as YAML that describes the same job from any folder."""
    saved = dict(plain) | {"name": config.name, "run_dir": config.run_dir, "args": list(config.args), "env": dict(config.env)}
    if config.entry.script is not None:
        saved["entry"] = {"script": str((path.parent / config.entry.script).absolute())}
    text: str = yaml.safe_dump(saved, sort_keys=False, allow_unicode=True)
    return text.replace("${", "\\${")


def _check(config: JobConfig) -> None:
    """Check what type hints cannot express."""
    if not config.name.strip():
        raise InvalidValueError("name", "empty")
    if not config.run_dir.strip():
        raise InvalidValueError("run_dir", "empty")
    for name, module in config.modules.items():
        _check_module(config, name, module)
    for name, pool in (config.pools or {}).items():
        for field in ("nodes", "procs_per_node"):
            _at_least(f"pools.{name}.{field}", getattr(pool, field), 1)
        _at_least(f"pools.{name}.resources.cpu", 1 if pool.resources.cpu is None else pool.resources.cpu, 1)
        _at_least(f"pools.{name}.resources.gpu", pool.resources.gpu, 0)
        _at_least(f"pools.{name}.resources.memory_mb", pool.resources.memory_mb, 1)
    if config.pools is not None and not config.pools:
        raise InvalidValueError("pools", "empty; leave it out to run on this machine")
    _check_entry(config)
    _at_least("runtime.max_restarts", config.runtime.max_restarts, 0)
    _check_times(config.runtime)
    for key, env in [("env", config.env), *((f"modules.{name}.env", m.env) for name, m in config.modules.items())]:
        for variable in env:
            if not variable or "=" in variable or "\0" in variable:
                raise InvalidValueError(f"{key}.{variable}", "not a name for an environment variable")
            if _RESERVED_VARIABLES.fullmatch(variable):
                raise InvalidValueError(f"{key}.{variable}", "mimo-launch sets this variable itself; leave it out")


def _check_times(runtime: RuntimeConfig) -> None:
    for field in ("timeout_s", "grace_s", "warning_s"):
        if getattr(runtime, field) <= 0:
            raise InvalidValueError(f"runtime.{field}", f"={getattr(runtime, field):g} is not above 0")
    if (stall_timeout_s := runtime.stall_timeout_s or 0.0) < 0:
        raise InvalidValueError("runtime.stall_timeout_s", f"={stall_timeout_s:g} is below 0; 0 turns hang detection off")


def _check_module(config: JobConfig, name: str, module: ModuleConfig) -> None:
    if module.pool is not None and module.pool not in (config.pools or {}):
        known = ", ".join(config.pools or {}) or "none"
        raise InvalidValueError(f"modules.{name}.pool", f"={module.pool} is not a pool; there is {known}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidValueError(key, f"={value} is less than {least}")


def _check_entry(config: JobConfig) -> None:
    given = {field.name: getattr(config.entry, field.name) for field in fields(config.entry)}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none of them"
        raise InvalidValueError("entry", f"has exactly one of {', '.join(given)}; found {found}")
    if not given[chosen[0]]:
        raise InvalidValueError(f"entry.{chosen[0]}", "empty")
    if chosen == ["command"] and config.runtime.join is Join.LAUNCHER:
        raise InvalidValueError(
            "runtime.join", "=launcher cannot join on behalf of entry.command, another program; use script, or leave it out"
        )
