"""From plain values, as YAML and JSON give them, to the frozen dataclasses that configs and plans are.

The type hints of a dataclass decide what is valid. Values are checked here and not by OmegaConf's structured configs:
those name enum members by their Python names, turn `1.50` and `true` among the arguments into other text, and accept a
list where an environment variable should be.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from launcher.config.literals import WrittenFloat, WrittenInt, text_of
from launcher.formatting import did_you_mean
from mimo_role import Topology, TopologyError

_Config = TypeVar("_Config")

LARGEST_INT = 10**9
LARGEST_FLOAT = 10.0**7
"""As seconds, about four months."""

_LONGEST_SHOWN = 60

_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


class InvalidValueError(Exception):
    """A value that does not fit its type hint; the message names its key."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(joined(key, problem))
        self.key = key
        self.problem = problem


def joined(key: str, problem: str) -> str:
    """A key and what is wrong with it: `modules.vision.tp: missing`, `modules.vision.tp=x is not a number`."""
    if not key:
        return problem.removeprefix("=")
    return f"{key}{problem}" if problem.startswith("=") else f"{key}: {problem}"


def build(cls: type[_Config], value: Any, key: str = "") -> _Config:
    """Make a dataclass of type `cls` from plain values.

    Args:
        cls: a dataclass; its fields' hints are scalars, enums, mappings, tuples, dataclasses, and unions with `None` or
            literal words.
        value: what YAML or JSON gave. A number is valid as text if it is a `WrittenInt` or `WrittenFloat`.
        key: the path of the value, which messages begin with.

    Raises:
        InvalidValueError: an unknown or missing key, or a value of the wrong type or out of range.
    """
    if not isinstance(value, Mapping):
        raise _wrong(key, value, f"a mapping; it has {_names(cls)}")
    hints = _hints(cls)
    for name in value:
        if name not in hints:
            raise InvalidValueError(_child(key, name), f"unknown key; {did_you_mean(name, hints) or f'it has {_names(cls)}'}")
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name not in value and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidValueError(_child(key, field.name), f"missing{_words_to_choose_from(hints[field.name])}")
    values = {name: convert(hints[name], item, _child(key, name)) for name, item in value.items()}
    try:
        return cls(**values)
    except TopologyError as error:
        raise InvalidValueError(_child(key, error.key), _problem_of(error)) from None


def _words_to_choose_from(hint: Any) -> str:
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    return f"; it is {' or '.join(member.value for member in hint)}" if is_enum else ""


def convert(hint: Any, value: Any, key: str) -> Any:
    """Make a value of the type that a hint names from plain values.

    Raises:
        InvalidValueError: as for `build`.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _choice(arguments, value, key)
    if is_dataclass(hint) and hint is not Topology:
        assert isinstance(hint, type)
        return build(hint, value, key)
    if origin is Mapping:
        return _mapping(arguments[1], value, key)
    if origin is tuple:
        if not isinstance(value, list):
            raise _wrong(key, value, "a list")
        return tuple(convert(arguments[0], item, f"{key}[{index}]") for index, item in enumerate(value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_word([member.value for member in hint], value, key))
    return _CONVERTERS[hint](value, key)


def _choice(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    """One type, or one of several words, or `None`."""
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    words = [word for choice in rest if get_origin(choice) is Literal for word in get_args(choice)]
    if value in words:
        return value
    plain = next(choice for choice in rest if get_origin(choice) is not Literal)
    try:
        return convert(plain, value, key)
    except InvalidValueError as error:
        if not words or error.key != key:
            raise
        hint = did_you_mean(value, words)
        raise InvalidValueError(key, f"{error.problem} or {' or '.join(words)}" + (f"; {hint}" if hint else "")) from None


def _topology(value: Any, key: str) -> Topology:
    """A topology checks its JSON form itself."""
    if not isinstance(value, Mapping):
        raise _wrong(key, value, "a mapping")
    try:
        return Topology.from_dict(value)
    except TopologyError as error:
        raise InvalidValueError(error.key, _problem_of(error)) from None


def _mapping(hint: Any, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong(key, value, "a mapping")
    for name in value:
        if not isinstance(name, str):
            raise InvalidValueError(_child(key, name), "the key is not text; quote it")
    return {name: convert(hint, item, _child(key, name)) for name, item in value.items()}


def _word(allowed: list[str], value: Any, key: str) -> str:
    if value not in allowed:
        raise _wrong(key, value, " or ".join(allowed), did_you_mean(value, allowed))
    word: str = value
    return word


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str | WrittenInt | WrittenFloat):
        quote = f'quote it: "{str(value).lower()}"' if isinstance(value, bool) else ""
        raise _wrong(key, value, "text", quote)
    text = text_of(value)
    if "\0" in text:
        raise InvalidValueError(key, "text cannot contain a NUL character")
    return text


def _whole_number(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(key, value, "a whole number")
    if abs(value) > LARGEST_INT:
        raise _wrong(key, value, f"below {LARGEST_INT}")
    return int(value)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
        raise _wrong(key, value, f"a number up to {LARGEST_FLOAT:g}")
    return float(value)


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, value, "true or false")
    return value


def _anything(value: Any, key: str) -> Any:
    """A value that its reader checks, and that can be written as text."""
    for index, item in enumerate(value if isinstance(value, list) else []):
        _anything(item, f"{key}[{index}]")
    if isinstance(value, bytes):
        raise _wrong(key, value, "text, a number, true or a list")
    return value


_CONVERTERS: dict[Any, Callable[[Any, str], Any]] = {
    str: _text,
    int: _whole_number,
    float: _number,
    bool: _boolean,
    Any: _anything,
    Topology: _topology,
}


def _wrong(key: str, value: Any, allowed: str, hint: str = "") -> InvalidValueError:
    return InvalidValueError(key, f"={_shown(value)} is not {allowed}" + (f"; {hint}" if hint else ""))


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def _problem_of(error: TopologyError) -> str:
    return str(error).removeprefix(error.key).removeprefix(": ")


def _names(cls: type) -> str:
    return ", ".join(field.name for field in fields(cls))


def _child(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
