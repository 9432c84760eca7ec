"""From plain values, as YAML and JSON give them, to the frozen dataclasses that configs and plans are.

The type hints of a dataclass decide what is valid. Values are checked here and not by OmegaConf's structured configs:
those name enum members by their Python names, turn `1.50` and `true` among the arguments into other text, and accept a
list where an environment variable should be.
"""

import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from launcher.config.literals import Scalar, read
from launcher.config.mistakes import Bound, InvalidValueError, problem_of, raise_all, wrong
from launcher.formatting import did_you_mean
from mimo_role import Topology, TopologyError

_Config = TypeVar("_Config")

LARGEST_INT = 10**9
LARGEST_FLOAT = 10.0**7
"""As seconds, about four months."""

_hints: Callable[[type], dict[str, Any]] = cache(get_type_hints)


@dataclass(frozen=True)
class _Item:
    """A value to convert, as a part of a mapping or list."""

    name: Any
    """Its key in the mapping, or its index."""
    hint: Any
    value: Any
    key: str
    """Its path."""
    bound: Bound | None = None


def build(cls: type[_Config], value: Any, key: str = "") -> _Config:
    """Make a dataclass of type `cls` from plain values.

    Args:
        cls: a dataclass; its fields' hints are scalars, enums, mappings, tuples, dataclasses, and unions with `None` or
            literal words.
        value: what YAML or JSON gave. A `Scalar` is valid as text and as the number or truth value that it is.
        key: the path of the value, which messages begin with.

    Raises:
        InvalidValueError: unknown or missing keys, and values of the wrong type or out of range.
    """
    if not isinstance(value, Mapping):
        raise wrong(key, value, f"a mapping; it has {_names(cls)}")
    hints, known = _hints(cls), {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    mistakes = [_unknown(cls, key, name) for name in value if name not in known]
    mistakes += [_missing(hints[name], _child(key, name)) for name in known if name not in value and _is_required(known[name])]
    known_items = ((field, value[name]) for name, field in known.items() if name in value)
    values = _converted((_field_item(field, hints[field.name], item, key) for field, item in known_items), mistakes)
    try:
        return cls(**values)
    except TopologyError as error:
        raise InvalidValueError(_child(key, error.key), problem_of(error, value)) from None


def _field_item(field: Field[Any], hint: Any, value: Any, key: str) -> _Item:
    return _Item(field.name, hint, value, _child(key, field.name), field.metadata.get("bound"))


def _converted(items: Iterable[_Item], mistakes: Iterable[InvalidValueError] = ()) -> dict[Any, Any]:
    """The converted values by name.

    Raises:
        InvalidValueError: all mistakes, those that were found before first.
    """
    values, found = {}, list(mistakes)
    for item in items:
        try:
            values[item.name] = convert(item.hint, item.value, item.key)
            if item.bound is not None and values[item.name] is not None:
                item.bound.check(values[item.name], item.key, item.value)
        except InvalidValueError as error:
            found.append(error)
    raise_all(found)
    return values


def _unknown(cls: type, key: str, name: Any) -> InvalidValueError:
    return InvalidValueError(_child(key, name), f"unknown key; {did_you_mean(name, _hints(cls)) or f'it has {_names(cls)}'}")


def _missing(hint: Any, key: str) -> InvalidValueError:
    return InvalidValueError(key, f"missing{_words_to_choose_from(hint)}")


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


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
            raise wrong(key, value, "a list")
        return tuple(_converted(_Item(at, arguments[0], item, f"{key}[{at}]") for at, item in enumerate(value)).values())
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(_word([member.value for member in hint], value, key))
    return _CONVERTERS[hint](value, key)


def _choice(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    """One type, a list in its place, one of several words, or `None`."""
    if read(value) is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    words = [word for choice in rest if get_origin(choice) is Literal for word in get_args(choice)]
    if value in words:
        return value
    lists = [choice for choice in rest if get_origin(choice) is tuple]
    others = [choice for choice in rest if get_origin(choice) not in (Literal, tuple)]
    plain = (lists + others if isinstance(value, list) else others + lists)[0]
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
        raise wrong(key, value, "a mapping")
    try:
        return Topology.from_dict(value)
    except TopologyError as error:
        raise InvalidValueError(error.key, problem_of(error, value)) from None


def _mapping(hint: Any, value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise wrong(key, value, "a mapping")
    mistakes = [
        InvalidValueError(_child(key, name), f'the key is not text; quote it: "{name}"') for name in value if not _is_text(name)
    ]
    return _converted((_Item(name, hint, item, _child(key, name)) for name, item in value.items()), mistakes)


def _is_text(name: Any) -> bool:
    return isinstance(name, str) and not isinstance(name, Scalar)


def _word(allowed: list[str], value: Any, key: str) -> str:
    if value not in allowed:
        raise wrong(key, value, " or ".join(allowed), did_you_mean(value, allowed))
    word: str = value
    return word


def _text(value: Any, key: str) -> str:
    if read(value) is None or not isinstance(value, str):
        raise wrong(key, value, "text", f'quote it: "{value}"' if isinstance(value, Scalar) else "")
    if "\0" in value:
        raise InvalidValueError(key, "text cannot contain a NUL character")
    return str(value)


def _whole_number(value: Any, key: str) -> int:
    number = read(value)
    if isinstance(number, bool) or (not isinstance(number, int) and number != math.inf):
        raise wrong(key, value, "a whole number")
    if abs(number) > LARGEST_INT:
        raise wrong(key, value, f"below {LARGEST_INT}")
    return int(number)


def _number(value: Any, key: str) -> float:
    number = read(value)
    if isinstance(number, bool) or not isinstance(number, int | float) or not -LARGEST_FLOAT <= number <= LARGEST_FLOAT:
        raise wrong(key, value, f"a number up to {LARGEST_FLOAT:g}")
    return float(number)


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(read(value), bool):
        raise wrong(key, value, "true or false")
    return bool(read(value))


def _anything(value: Any, key: str) -> Any:
    """A value that its reader checks: text, `True`, `False`, `None`, or a list or mapping of these.

    Only `true` and `false` are truth values here: `no` and `off` are words of their own in many options.
    """
    if isinstance(value, Mapping):
        return _mapping(Any, value, key)
    if isinstance(value, list):
        return list(convert(tuple[Any, ...], value, key))
    if isinstance(value, Scalar):
        return value.value if value.value is None or value.lower() in ("true", "false") else str(value)
    if not isinstance(value, str):
        raise wrong(key, value, "text, a number, true or a list")
    return _text(value, key)


_CONVERTERS: dict[Any, Callable[[Any, str], Any]] = {
    str: _text,
    int: _whole_number,
    float: _number,
    bool: _boolean,
    Any: _anything,
    Topology: _topology,
}


def _names(cls: type) -> str:
    return ", ".join(field.name for field in fields(cls))


def _child(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)
