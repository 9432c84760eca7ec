"""From a YAML file and overrides to a `JobConfig`, or to one error that names file and key."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from launcher.config.conversion import build
from launcher.config.literals import read
from launcher.config.mistakes import InvalidValueError, problem_of, raise_all
from launcher.config.reserved_variables import RESERVED_VARIABLES
from launcher.config.schema import JobConfig, Join, ModuleConfig
from launcher.config.yaml_reader import as_config_errors, read_config, refusal, source_of
from launcher.config.yaml_text import dump_yaml
from launcher.errors import ConfigError
from mimo_role import ModuleSizes, TopologyError

_MOST_LISTED = 8
"""Mistakes in one message."""


def load(path: Path, overrides: list[str]) -> tuple[JobConfig, str]:
    """Read a config file and apply `key.path=value` overrides to it.

    Returns:
        The job, and its config with all interpolations resolved, as YAML.

    Raises:
        ConfigError: no such file, not YAML, an interpolation that fails, unknown keys, or values of the wrong type or out
            of range.
    """
    try:
        with as_config_errors(path, overrides):
            plain = read_config(path, overrides)
            _without_pools(plain)
            config = build(JobConfig, plain)
            raise_all(_mistakes(config, plain))
            return config, _resolved_text(plain, config, path)
    except InvalidValueError as error:
        raise _refusal(path, overrides, error.mistakes) from None


def _refusal(path: Path, overrides: list[str], mistakes: Sequence[InvalidValueError]) -> ConfigError:
    found = [refusal(source_of(path, mistake.key, overrides), str(mistake)) for mistake in mistakes]
    if len(found) == 1:
        return found[0]
    listed = " ".join(f"({number}) {error}" for number, error in enumerate(found[:_MOST_LISTED], 1))
    more = f" and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
    return ConfigError(f"{len(found)} mistakes: {listed}{more}")


def _without_pools(plain: Any) -> None:
    """`pools=null` runs a cluster's config on one machine: the modules' pools no longer apply."""
    if isinstance(plain, dict) and read(plain.get("pools", {})) is None and isinstance(plain.get("modules"), dict):
        for module in plain["modules"].values():
            if isinstance(module, dict):
                module.pop("pool", None)


def _resolved_text(plain: Any, config: JobConfig, path: Path) -> str:
    """The config as YAML that describes the same job from any folder."""
    saved = dict(plain) | {"name": config.name, "run_dir": config.run_dir, "args": list(config.args), "env": dict(config.env)}
    if config.entry.script is not None:
        saved["entry"] = {"script": str((path.parent / config.entry.script).absolute())}
    return dump_yaml(saved)


def _mistakes(config: JobConfig, plain: Any) -> Iterator[InvalidValueError]:
    """What type hints cannot express."""
    for key in ("name", "run_dir"):
        if not getattr(config, key).strip():
            yield InvalidValueError(key, "empty")
    for name, module in config.modules.items():
        yield from _module_mistakes(config, plain, name, module)
    if config.pools is not None and not config.pools:
        yield InvalidValueError("pools", "empty; leave it out to run on this machine")
    yield from _entry_mistakes(config)
    for at, module_name in enumerate(config.runtime.preload):
        if not all(part.isidentifier() for part in module_name.split(".")):
            yield InvalidValueError(
                f"runtime.preload[{at}]", f"={module_name} is not the name of a module, such as package.module"
            )
    for key, env in [("env", config.env), *((f"modules.{name}.env", m.env) for name, m in config.modules.items())]:
        for variable in env:
            if not variable or "=" in variable or "\0" in variable:
                yield InvalidValueError(f"{key}.{variable}", "not a name for an environment variable")
            elif variable in RESERVED_VARIABLES:
                yield InvalidValueError(f"{key}.{variable}", "mimo-launch sets this variable itself; leave it out")


def _module_mistakes(config: JobConfig, plain: Any, name: str, module: ModuleConfig) -> Iterator[InvalidValueError]:
    try:
        ModuleSizes.from_value(name, module)
    except TopologyError as error:
        yield InvalidValueError(error.key, problem_of(error, plain))
    if module.pool is not None and module.pool not in (config.pools or {}):
        known = ", ".join(config.pools or {}) or "none"
        yield InvalidValueError(f"modules.{name}.pool", f"={module.pool} is not a pool; there is {known}")


def _entry_mistakes(config: JobConfig) -> Iterator[InvalidValueError]:
    given = {field.name: getattr(config.entry, field.name) for field in fields(config.entry)}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none of them"
        yield InvalidValueError("entry", f"has exactly one of {', '.join(given)}; found {found}")
    elif not given[chosen[0]]:
        yield InvalidValueError(f"entry.{chosen[0]}", "empty")
    elif chosen == ["command"] and config.runtime.join is Join.LAUNCHER:
        yield InvalidValueError(
            "runtime.join", "=launcher cannot join on behalf of entry.command, another program; use script, or leave it out"
        )
