"""From a YAML file and overrides to a `JobConfig`, or to one error that names file and key.

The values are checked here and not by OmegaConf's structured configs: those name enum members by their Python names, turn
`1.50` and `true` among the arguments into other text, and let a list through where an environment variable should be.
"""

import difflib
import re
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from launcher.config.literals import source_text, text_of, with_source
from launcher.config.schema import JobConfig, Join, ModuleConfig, RuntimeConfig
from launcher.config.yaml_reader import failures_told, joined, read, refusal, source_of
from mimo_role import TopologyError

_Config = TypeVar("_Config")

_SET_BY_US = re.compile(
    r"(MIMO|TORCHELASTIC|ROLE|GROUP)_.*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT"
)

LARGEST_INT = 10**9
LONGEST_BITS = 10_000
LONGEST_S = 10.0**7
"""About four months."""


def load(path: Path, overrides: list[str]) -> tuple[JobConfig, str]:
    """Read a config file and apply `key.path=value` overrides to it.

    Returns:
        The job, and its config with all interpolations resolved, as YAML.

    Raises:
        ConfigError: no such file, not YAML, an interpolation that fails, an unknown key, a value of the wrong type or
            out of range.
    """
    try:
        with failures_told(path, overrides):
            plain, text = read(path, overrides)
            _leave_pools(plain)
            config = _build(JobConfig, with_source(plain, source_text(text, overrides)), "")
            _check(config)
            return config, _resolved_text(plain, config, path)
    except _ValueProblemError as problem:
        raise refusal(source_of(path, problem.key, overrides), joined(problem.key, problem.text)) from None


def _leave_pools(plain: Any) -> None:
    """`pools=null` takes a cluster's config to one machine: where its modules would lie no longer matters."""
    if isinstance(plain, dict) and "pools" in plain and plain["pools"] is None and isinstance(plain.get("modules"), dict):
        for module in plain["modules"].values():
            if isinstance(module, dict):
                module.pop("pool", None)


def _resolved_text(plain: Any, config: JobConfig, path: Path) -> str:
    """The config as YAML that gives the same job again, wherever it lies."""
    saved = dict(plain) | {"name": config.name, "run_dir": config.run_dir, "args": list(config.args), "env": dict(config.env)}
    if config.entry.script is not None:
        saved["entry"] = {"script": str((path.parent / config.entry.script).absolute())}
    text: str = yaml.safe_dump(saved, sort_keys=False, allow_unicode=True)
    return text.replace("${", "\\${")


class _ValueProblemError(Exception):
    def __init__(self, key: str, text: str) -> None:
        super().__init__(key, text)
        self.key = key
        self.text = text


def _build(cls: type[_Config], value: Any, key: str) -> _Config:
    """Make a frozen config of type `cls` from plain YAML values."""
    if not isinstance(value, Mapping):
        raise _ValueProblemError(key, f"={_shown(value)} is not a mapping; it has {_names(cls)}")
    hints = get_type_hints(cls)
    for name in value:
        if name not in hints:
            close = difflib.get_close_matches(str(name), hints, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {_names(cls)}"
            raise _ValueProblemError(_child(key, name), f"unknown key; {hint}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise _ValueProblemError(_child(key, field.name), "missing")
    values = {name: _convert(hints[name], item, _child(key, name)) for name, item in value.items()}
    try:
        return cls(**values)
    except TopologyError as error:
        problem = str(error).removeprefix(error.key).removeprefix(": ")
        raise _ValueProblemError(_child(key, error.key), problem) from None


def _convert(hint: Any, value: Any, key: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return _build(hint, value, key)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise _wrong(key, value, "a mapping")
        for name in value:
            if not isinstance(name, str):
                raise _ValueProblemError(_child(key, name), "the key is not text; quote it")
        return {name: _convert(arguments[1], item, _child(key, name)) for name, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(key, value, "a list")
        return tuple(_convert(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        allowed = [member.value for member in hint]
        if value not in allowed:
            close = difflib.get_close_matches(str(value), allowed, n=1)
            raise _wrong(key, value, " or ".join(allowed), f"did you mean {close[0]!r}?" if close else "")
        return hint(value)
    return _option(value, key) if hint is Any else _convert_scalar(hint, value, key)


def _option(value: Any, key: str) -> Any:
    """A value of which only its reader knows what it may be, but which can be written as text."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            _option(item, f"{key}[{index}]")
    elif isinstance(value, int):
        _check_digits(value, key)
    elif isinstance(value, bytes):
        raise _wrong(key, value, "text, a number, true or a list")
    return value


def _check_digits(value: int, key: str) -> None:
    """Python refuses to write very long numbers as text."""
    if value.bit_length() > LONGEST_BITS:
        raise _ValueProblemError(key, f"a number of {value.bit_length()} bits; quote it if it is text")


def _convert_union(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    words = [word for choice in rest if get_origin(choice) is Literal for word in get_args(choice)]
    if value in words:
        return value
    plain = next(choice for choice in rest if get_origin(choice) is not Literal)
    try:
        return _convert(plain, value, key)
    except _ValueProblemError as problem:
        if words and problem.key == key:
            close = difflib.get_close_matches(str(value), words, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise _ValueProblemError(key, f"{problem.text} or {' or '.join(words)}{hint}") from None
        raise


def _convert_scalar(hint: type, value: Any, key: str) -> Any:
    if hint is str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            quote = f'; quote it: "{str(value).lower()}"' if isinstance(value, bool) else ""
            raise _wrong(key, value, "text", quote.removeprefix("; "))
        if isinstance(value, int):
            _check_digits(value, key)
        if "\0" in text_of(value):
            raise _ValueProblemError(key, "a NUL character cannot stand in text")
        return text_of(value)
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong(key, value, "a whole number")
        if abs(value) > LARGEST_INT:
            raise _wrong(key, value, f"below {LARGEST_INT}")
        return int(value)
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(key, value, "true or false")
        return value
    assert hint is float
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LONGEST_S <= value <= LONGEST_S:
        raise _wrong(key, value, f"a number up to {LONGEST_S:g}")
    return float(value)


def _wrong(key: str, value: Any, allowed: str, hint: str = "") -> _ValueProblemError:
    return _ValueProblemError(key, f"={_shown(value)} is not {allowed}" + (f"; {hint}" if hint else ""))


def _shown(value: Any) -> str:
    try:
        text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # a number too long to be written
        return "..."
    return text if len(text) <= 60 else f"{text[:57]}..."


def _names(cls: type) -> str:
    return ", ".join(field.name for field in fields(cls))


def _child(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _check(config: JobConfig) -> None:
    """What the types cannot say."""
    if not config.name.strip():
        raise _ValueProblemError("name", "empty")
    if not config.run_dir.strip():
        raise _ValueProblemError("run_dir", "empty")
    for name, module in config.modules.items():
        _check_module(config, name, module)
    for name, pool in (config.pools or {}).items():
        for field in ("nodes", "procs_per_node"):
            _at_least(f"pools.{name}.{field}", getattr(pool, field), 1)
        _at_least(f"pools.{name}.resources.cpu", 1 if pool.resources.cpu is None else pool.resources.cpu, 1)
        _at_least(f"pools.{name}.resources.gpu", pool.resources.gpu, 0)
        _at_least(f"pools.{name}.resources.memory_mb", pool.resources.memory_mb, 1)
    if config.pools is not None and not config.pools:
        raise _ValueProblemError("pools", "empty; leave it out to run on this machine")
    _check_entry(config)
    _at_least("runtime.max_restarts", config.runtime.max_restarts, 0)
    _check_times(config.runtime)
    for key, env in [("env", config.env), *((f"modules.{name}.env", m.env) for name, m in config.modules.items())]:
        for variable in env:
            if not variable or "=" in variable or "\0" in variable:
                raise _ValueProblemError(f"{key}.{variable}", "not a name for an environment variable")
            if _SET_BY_US.fullmatch(variable):
                raise _ValueProblemError(f"{key}.{variable}", "mimo-launch sets this variable itself; leave it out")


def _check_times(runtime: RuntimeConfig) -> None:
    for field in ("timeout_s", "grace_s", "warning_s"):
        if getattr(runtime, field) <= 0:
            raise _ValueProblemError(f"runtime.{field}", f"={getattr(runtime, field):g} is not above 0")
    if (stall_timeout_s := runtime.stall_timeout_s or 0.0) < 0:
        raise _ValueProblemError("runtime.stall_timeout_s", f"={stall_timeout_s:g} is below 0; 0 lets ranks stand still")


def _check_module(config: JobConfig, name: str, module: ModuleConfig) -> None:
    if module.pool is not None and module.pool not in (config.pools or {}):
        known = ", ".join(config.pools or {}) or "none"
        raise _ValueProblemError(f"modules.{name}.pool", f"={module.pool} is not a pool; there is {known}")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise _ValueProblemError(key, f"={value} is less than {least}")


def _check_entry(config: JobConfig) -> None:
    given = {field.name: getattr(config.entry, field.name) for field in fields(config.entry)}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        found = " and ".join(chosen) or "none of them"
        raise _ValueProblemError("entry", f"has exactly one of {', '.join(given)}; found {found}")
    if not given[chosen[0]]:
        raise _ValueProblemError(f"entry.{chosen[0]}", "empty")
    if chosen == ["command"] and config.runtime.join is Join.LAUNCHER:
        raise _ValueProblemError(
            "runtime.join", "=launcher cannot join on behalf of entry.command, another program; use script, or leave it out"
        )
