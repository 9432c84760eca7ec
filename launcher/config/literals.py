"""What the user typed: YAML reads `0042` as 34 and `1.50` as 1.5, which is wrong for an argument of a script.

And its outline, told before anything is built from it, and the form in which a message can repeat it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

_TextLoader: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""libyaml's, as OmegaConf's own, where PyYAML has it."""

DEEPEST = 40
"""How far lists and mappings nest: libyaml builds them by recursion, and takes the process down where the stack ends."""

LARGEST_UNFOLDED = 10_000_000
"""Characters of a config with its interpolations resolved."""

ITEM_SIZE = 100

LONGEST_SHOWN = 200
"""Characters of one thing the user typed that a message repeats."""


@dataclass(frozen=True)
class Outline:
    """What a YAML text holds."""

    is_mapping: bool
    """Whether it is a mapping, or nothing at all."""
    depth: int
    """How far its lists and mappings nest."""

    @classmethod
    def of(cls, text: str) -> "Outline":
        """
        Raises:
            yaml.YAMLError: not YAML.
        """
        deepest, depth, first = 0, 0, None
        for event in yaml.parse(text, Loader=_TextLoader):
            if isinstance(event, yaml.NodeEvent):
                first = first or event
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            deepest = max(deepest, depth)
            if depth > DEEPEST:
                break
        return cls(first is None or isinstance(first, yaml.MappingStartEvent), deepest)


class Unfolding:
    """How large a config becomes once its interpolations are resolved: a few that repeat each other can fill the memory.

    References by a path are counted, those that resolvers make are not.
    """

    def __init__(self, tree: Any) -> None:
        self._tree = tree
        self._sizes: dict[tuple[str, ...], int] = {}

    def size(self) -> int:
        """Its characters; an item of a list or mapping counts for `ITEM_SIZE` more."""
        return self._measure(self._tree, ())

    def _measure(self, value: Any, path: tuple[str, ...]) -> int:
        if path not in self._sizes:
            self._sizes[path] = 0  # for what leads back here: OmegaConf refuses a circle
            if isinstance(value, dict | list):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                self._sizes[path] = sum(ITEM_SIZE + self._measure(item, (*path, str(name))) for name, item in items)
            elif isinstance(value, str):
                self._sizes[path] = len(value) + sum(self._measure(*self._find(target)) for target in _targets(value, path))
        return self._sizes[path]

    def _find(self, path: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
        """The value at the path, or the one on the way that is text: it may stand for a mapping."""
        value = self._tree
        for at, name in enumerate(path):
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list):
                value = value[int(name)] if name.isdecimal() and len(name) < 9 and int(name) < len(value) else None
            else:
                return value, path[:at]
        return value, path


def _targets(text: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths that a text at a path interpolates; leading dots count levels up from where it stands."""
    for dots, names in re.findall(r"\$\{\s*(\.*)([^${}:]*)\}", text):
        base = path[: max(len(path) - len(dots), 0)] if dots else ()
        yield (*base, *re.findall(r"[^\s.\[\]]+", names))


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would act upon."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text: str) -> str:
    """The start of a text that is too long for a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class _Integer(int):
    source: str


class _Float(float):
    source: str


def source_text(text: str, overrides: list[str]) -> Any:
    """The file with the overrides, every scalar as the text it was written as; empty where that cannot be told."""
    try:
        written = yaml.load(text, Loader=_TextLoader)  # noqa: S506 (it makes nothing but text)
        if not overrides:
            return written
        tree = OmegaConf.create(written)
        for override in overrides:
            key, value = override.split("=", 1)
            OmegaConf.update(tree, key, yaml.load(value, Loader=_TextLoader), force_add=True)  # noqa: S506
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
