"""What the user typed: YAML reads `0042` as 34 and `1.50` as 1.5, which is wrong for an argument of a script."""

from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException


class _Integer(int):
    source: str


class _Float(float):
    source: str


def source_text(text: str, overrides: list[str]) -> Any:
    """The file with the overrides, every scalar as the text it was written as; empty where that cannot be told."""
    try:
        tree = OmegaConf.create(yaml.load(text, Loader=yaml.BaseLoader))  # noqa: S506 (it makes nothing but text)
        for override in overrides:
            key, value = override.split("=", 1)
            OmegaConf.update(tree, key, yaml.load(value, Loader=yaml.BaseLoader), force_add=True)  # noqa: S506
        return OmegaConf.to_container(tree, resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError, LookupError, AttributeError, RecursionError):
        return {}


def with_source(value: Any, source: Any) -> Any:
    """The same tree, whose numbers know the text they were written as."""
    if isinstance(value, dict) and isinstance(source, dict):
        return {name: with_source(item, source.get(str(name))) for name, item in value.items()}
    if isinstance(value, list) and isinstance(source, list) and len(value) == len(source):
        return [with_source(item, text) for item, text in zip(value, source, strict=True)]
    if type(value) in (int, float) and isinstance(source, str) and "${" not in source:
        number: _Integer | _Float = _Integer(value) if isinstance(value, int) else _Float(value)
        number.source = source
        return number
    return value


def text_of(value: str | int | float) -> str:
    """A scalar as text: as it was written, where that is known."""
    return value.source if isinstance(value, _Integer | _Float) else str(value)
