"""From YAML text and the command line's overrides to plain values, or to one error that names the file or the override.

PyYAML reads, OmegaConf merges and interpolates. Their errors, and those of Python, become a `ConfigError` here.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.interpolation import with_literals
from launcher.config.literals import read, with_scalars
from launcher.config.mistakes import joined
from launcher.config.schema import EntryConfig, JobConfig
from launcher.config.yaml_text import parse_yaml
from launcher.errors import ConfigError
from launcher.formatting import did_you_mean, printable, shortened

_MISFITS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Python's own exceptions that OmegaConf and PyYAML raise for an override or a tagged value that does not fit."""

_EventLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""libyaml's, if PyYAML has it."""

_FLAGS = {"allow_objects": True}
"""For OmegaConf to hold a `Scalar`; what else a YAML tag makes is refused by the schema."""

DEEPEST = 40
"""The most levels of lists and mappings. libyaml parses by recursion: a deep text overflows the stack of the process."""

_KEYS_OF_A_PLAN = {"topology", "nodes"}
"""No config has them."""


def read_config(path: Path, overrides: list[str]) -> Any:
    """Read a config file and apply `key.path=value` overrides. Call it within `as_config_errors`.

    Returns:
        The tree with all interpolations resolved. What YAML does not read as text is a `Scalar`.

    Raises:
        ConfigError: no such file, not YAML, nested too deeply, or a plan.
    """
    tree = _read_yaml(path)
    if set(tree) >= _KEYS_OF_A_PLAN:
        what = "a plan, which `mimo-launch run` takes" if "module_env" in tree else "what `mimo-launch plan --json` prints"
        raise refusal(path, f"this is {what}; give the config that it was made from")
    changes = _read_overrides(overrides)
    _check_modules_exist(tree, overrides)
    _replace_entry(tree, changes)
    merged = OmegaConf.merge(tree, changes)
    if "run_dir" not in merged and "name" in merged:
        # Last and as text, so that its interpolation is resolved after the others, and an error in one names that one.
        merged = OmegaConf.merge(merged, {"run_dir": _default("run_dir")})
    return with_scalars(OmegaConf.to_container(merged, resolve=True, throw_on_missing=True))


@contextmanager
def as_config_errors(path: Path, overrides: list[str]) -> Iterator[None]:
    """Turn the exceptions of OmegaConf and Python about a config's values into one message.

    Raises:
        ConfigError: an interpolation that fails, or an override that does not fit the file.
    """
    try:
        yield
    except OmegaConfBaseException as error:
        key = str(error.full_key or "")
        raise refusal(source_of(path, key, overrides), joined(key, _first_line(error))) from None
    except _MISFITS as error:
        if not overrides:
            raise refusal(path, _first_line(error)) from None
        raise refusal(f"command line, {_shown_words(overrides)}", f"does not fit {path}: {_first_line(error)}") from None


def refusal(where: Path | str, problem: str) -> ConfigError:
    """The error for an invalid config; its message is one line."""
    return ConfigError(printable(f"{where}: {problem}"))


def source_of(path: Path, key: str, overrides: Sequence[str]) -> str:
    """The file, or the override that last set the key or a part of it."""
    for override in reversed(overrides):
        target = override.split("=", 1)[0]
        if key and (key == target or key.startswith((f"{target}.", f"{target}["))):
            return f"command line, {shortened(printable(override))}"
    return str(path)


def _default(name: str) -> Any:
    return next(field.default for field in fields(JobConfig) if field.name == name)


def _read_yaml(path: Path) -> DictConfig:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not text.strip():
        raise ConfigError(f"{path}: empty; a config has at least name, layout, modules and entry")
    try:
        _check_outline(path, text, is_config=True)
        tree = OmegaConf.create(with_literals(parse_yaml(text) or {}), flags=_FLAGS)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise refusal(f"{path}{where}", f"not YAML: {error.problem}") from None
    except OmegaConfBaseException as error:
        raise refusal(path, joined(str(error.full_key or ""), _first_line(error))) from None
    except (yaml.YAMLError, *_MISFITS) as error:
        raise refusal(path, f"not YAML: {_misread(error)}") from None
    assert isinstance(tree, DictConfig)
    return tree


def _check_outline(where: Path | str, text: str, *, is_config: bool) -> None:
    """Check how deep a YAML text nests, and that a config is a mapping or nothing, before values are made from it.

    Raises:
        ConfigError: it nests too deeply, or a config is not a mapping.
        yaml.YAMLError: not YAML.
    """
    depth, first = 0, None
    for event in yaml.parse(text, Loader=_EventLoader):
        if isinstance(event, yaml.NodeEvent):
            first = first or event
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise refusal(where, f"lists and mappings nest more than {DEEPEST} deep; a config needs fewer than ten levels")
    if is_config and first is not None and not isinstance(first, yaml.MappingStartEvent):
        raise refusal(where, "not a mapping; a config has at least name, layout, modules and entry")


def _read_overrides(overrides: list[str]) -> DictConfig:
    for override in overrides:
        # OmegaConf splits key and value at the first "=" too, unless it is escaped.
        if not re.match(r"([^=\s\\]|\\[^=\s])+=", override):
            raise refusal(
                "command line",
                f"{shortened(override)!r} is not an override; write key.path=value (arguments of the script follow --)",
            )
    try:
        for override in overrides:
            _check_outline(f"command line, {shortened(override)}", override.split("=", 1)[1], is_config=False)
        return _changes(overrides)
    except OmegaConfBaseException as error:
        raise refusal("command line", f"{_shown_words(overrides)}: {_first_line(error)}") from None
    except (yaml.YAMLError, *_MISFITS) as error:
        problem = "a key is not a path, such as modules.language.tp or args[0]"
        if not isinstance(error, LookupError) or any("!" in override for override in overrides):
            problem = _misread(error)
        raise refusal("command line", f"{_shown_words(overrides)}: {problem}") from None


def _changes(overrides: list[str]) -> DictConfig:
    changes = OmegaConf.create({}, flags=_FLAGS)
    for override in overrides:
        key, text = override.split("=", 1)
        OmegaConf.update(changes, key, with_literals(parse_yaml(text)))
    return changes


def _shown_words(overrides: list[str]) -> str:
    return shortened(" ".join(overrides))


def _check_modules_exist(tree: DictConfig, overrides: list[str]) -> None:
    """Refuse a misspelt module in an override, which would otherwise become a new module."""
    modules = tree.get("modules") if "modules" in tree else None
    known = [str(name) for name in modules] if isinstance(modules, DictConfig) else []
    for override in overrides:
        parts = override.split("=", 1)[0].split(".")
        if parts[0] == "modules" and len(parts) > 2 and known and parts[1] not in known:
            hint = did_you_mean(parts[1], known) or f"there are {', '.join(known)}"
            raise refusal(f"command line, {shortened(override)}", f"modules.{shortened(parts[1])}: no such module; {hint}")


def _replace_entry(tree: DictConfig, changes: DictConfig) -> None:
    """An entry of any kind on the command line replaces the file's."""
    # Unresolved: it may refer to keys of the file.
    given = OmegaConf.to_container(changes, resolve=False).get("entry")  # type: ignore[union-attr]
    if isinstance(given, dict) and any(read(given.get(field.name)) is not None for field in fields(EntryConfig)):
        tree.pop("entry", None)


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return f"not YAML: {error.problem}"
    if isinstance(error, RecursionError):
        return "its lists, mappings or interpolations nest too deeply"
    text = error.msg if isinstance(error, OmegaConfBaseException) and error.msg else str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def _misread(error: Exception) -> str:
    """Why no YAML value can be made from a text."""
    # PyYAML looks up or matches the text of a tagged scalar without checking the result.
    if isinstance(error, LookupError | AttributeError):
        return "a value does not fit its tag (!!...); leave the tag out, or quote the value"
    return _first_line(error)
