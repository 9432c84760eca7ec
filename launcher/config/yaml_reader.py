"""From YAML text and the command line's overrides to plain values, or to one error that names the file or the override.

OmegaConf reads, merges and interpolates; what it, PyYAML and libyaml would end in otherwise is refused here.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launcher.config.literals import DEEPEST, LARGEST_UNFOLDED, Outline, Unfolding, printable, shortened
from launcher.config.schema import EntryConfig, JobConfig
from launcher.errors import ConfigError

_MISFITS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What OmegaConf and PyYAML raise of Python's own where an override does not fit, or a value its tag."""


def read(path: Path, overrides: list[str]) -> tuple[Any, str]:
    """The file with `key.path=value` overrides and all interpolations resolved, as plain values; and its text.

    It is called within `failures_told`.

    Raises:
        ConfigError: no such file, not YAML, or more than a config may hold.
    """
    tree, text = _read_yaml(path)
    changes = _read_overrides(overrides)
    _check_modules_exist(tree, overrides)
    _replace_entry(tree, changes)
    merged = OmegaConf.merge(tree, changes)
    if "run_dir" not in merged and "name" in merged:
        # Last and as text, so that its interpolation is resolved, and blamed, after the others.
        merged = OmegaConf.merge(merged, {"run_dir": _default("run_dir")})
    return _resolved(path, merged), text


@contextmanager
def failures_told(path: Path, overrides: list[str]) -> Iterator[None]:
    """Turn what OmegaConf, and Python, raise over a config's values into one message.

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
    """The one message, on one line, that a config at fault ends in."""
    return ConfigError(printable(f"{where}: {problem}"))


def source_of(path: Path, key: str, overrides: Sequence[str]) -> str:
    """The file, or the override that last set the key or a part of it."""
    for override in reversed(overrides):
        target = override.split("=", 1)[0]
        if key and (key == target or key.startswith((f"{target}.", f"{target}["))):
            return f"command line, {shortened(printable(override))}"
    return str(path)


def joined(key: str, text: str) -> str:
    """A key, and what is wrong with it; `=value is not ...` follows it at once."""
    if not key:
        return text
    return f"{key}{text}" if text.startswith("=") else f"{key}: {text}"


def _resolved(path: Path, merged: Container) -> Any:
    if Unfolding(OmegaConf.to_container(merged, resolve=False)).size() > LARGEST_UNFOLDED:
        raise refusal(path, f"with its interpolations resolved it has more than {LARGEST_UNFOLDED} characters")
    return OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)


def _default(name: str) -> Any:
    return next(field.default for field in fields(JobConfig) if field.name == name)


def _read_yaml(path: Path) -> tuple[DictConfig, str]:
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
        outline = Outline.of(text)
        if not outline.is_mapping:
            raise ConfigError(f"{path}: not a mapping; a config has at least name, layout, modules and entry")
        _check_depth(path, outline)
        tree = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise refusal(f"{path}{where}", f"not YAML: {error.problem}") from None
    except OmegaConfBaseException as error:
        raise refusal(path, joined(str(error.full_key or ""), _first_line(error))) from None
    except (yaml.YAMLError, *_MISFITS) as error:
        raise refusal(path, f"not YAML: {_misread(error)}") from None
    assert isinstance(tree, DictConfig)
    return tree, text


def _check_depth(where: Path | str, outline: Outline) -> None:
    if outline.depth > DEEPEST:
        raise refusal(where, f"lists and mappings nest more than {DEEPEST} deep; a config needs fewer than ten levels")


def _read_overrides(overrides: list[str]) -> DictConfig:
    for override in overrides:
        # Without an escaped "=" in the key the first one is where OmegaConf, too, parts key and value.
        if not re.match(r"([^=\s\\]|\\[^=\s])+=", override):
            raise refusal(
                "command line",
                f"{shortened(override)!r} is not an override; write key.path=value (arguments of the script follow --)",
            )
    try:
        for override in overrides:
            _check_depth(f"command line, {shortened(override)}", Outline.of(override.split("=", 1)[1]))
        return OmegaConf.from_dotlist(overrides)
    except OmegaConfBaseException as error:
        raise refusal("command line", f"{_shown_words(overrides)}: {_first_line(error)}") from None
    except (yaml.YAMLError, *_MISFITS) as error:
        problem = "a key is not a path, such as modules.language.tp or args[0]"
        if not isinstance(error, LookupError) or any("!" in override for override in overrides):
            problem = _misread(error)
        raise refusal("command line", f"{_shown_words(overrides)}: {problem}") from None


def _shown_words(overrides: list[str]) -> str:
    return shortened(" ".join(overrides))


def _check_modules_exist(tree: DictConfig, overrides: list[str]) -> None:
    """A misspelt module in an override would otherwise become a module of its own."""
    modules = tree.get("modules") if "modules" in tree else None
    known = [str(name) for name in modules] if isinstance(modules, DictConfig) else []
    for override in overrides:
        parts = override.split("=", 1)[0].split(".")
        if parts[0] == "modules" and len(parts) > 2 and known and parts[1] not in known:
            close = difflib.get_close_matches(parts[1], known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
            raise refusal(f"command line, {shortened(override)}", f"modules.{shortened(parts[1])}: no such module; {hint}")


def _replace_entry(tree: DictConfig, changes: DictConfig) -> None:
    """An entry of one kind on the command line takes the place of the file's, of whatever kind."""
    # As written: what it interpolates may stand in the file.
    given = OmegaConf.to_container(changes, resolve=False).get("entry")  # type: ignore[union-attr]
    if isinstance(given, dict) and any(given.get(field.name) is not None for field in fields(EntryConfig)):
        tree.pop("entry", None)


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        return f"not YAML: {error.problem}"
    if isinstance(error, RecursionError):
        return "its lists, mappings or interpolations nest too deeply"
    text = error.msg if isinstance(error, OmegaConfBaseException) and error.msg else str(error)
    return (text.splitlines() or [type(error).__name__])[0]


def _misread(error: Exception) -> str:
    """What is wrong with a text that no YAML value can be made from."""
    # PyYAML looks a tagged scalar's text up, or matches it, and takes for granted that it is there.
    if isinstance(error, LookupError | AttributeError):
        return "a value does not fit its tag (!!...); leave the tag out, or quote the value"
    return _first_line(error)
