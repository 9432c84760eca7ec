"""The JSON Schema of a config, for editors: generated from the dataclasses and the docstrings of their fields."""

import ast
import inspect
import textwrap
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from launcher.config.schema import JobConfig

SCHEMA_FILE = Path(__file__).with_name("job.schema.json")
"""The schema as a file of the package; a test compares it with `job_schema()`."""

_INTERPOLATION = {"type": "string", "pattern": r"\$\{.+\}"}
"""OmegaConf's `${...}`, in place of any scalar that is not text."""

_SCALARS: dict[Any, list[dict[str, Any]]] = {
    str: [{"type": ["string", "number", "boolean"]}],
    int: [{"type": "integer"}, _INTERPOLATION],
    float: [{"type": "number"}, _INTERPOLATION],
    bool: [{"type": "boolean"}, _INTERPOLATION],
    type(None): [{"type": "null"}],
    Any: [{}],
}


def job_schema() -> dict[str, Any]:
    """The schema of `JobConfig`, in draft 7: the newest one that editors support in full."""
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "mimo-launch config", **_object(JobConfig)}


def _object(cls: type[Any]) -> dict[str, Any]:
    hints, docs = get_type_hints(cls), _field_docs(cls)
    properties = {field.name: _property(hints[field.name], field, docs.get(field.name)) for field in fields(cls)}
    required = [field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING]
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return schema | ({"required": required} if required else {})


def _property(hint: Any, field: Field[Any], doc: str | None) -> dict[str, Any]:
    default = field.default.value if isinstance(field.default, Enum) else field.default
    default = list(default) if isinstance(default, tuple) else default
    return {
        **({"description": doc} if doc else {}),
        **_schema_of(hint),
        **({"default": default} if default is not MISSING and default is not None else {}),
    }


def _schema_of(hint: Any) -> dict[str, Any]:
    choices = _choices(hint)
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def _choices(hint: Any) -> list[dict[str, Any]]:
    """Schemas of which one must fit."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        found = [choice for argument in arguments for choice in _choices(argument)]
        return [choice for index, choice in enumerate(found) if choice not in found[:index]]
    if origin is Mapping:
        return [{"type": "object", "additionalProperties": _schema_of(arguments[1])}]
    if origin is tuple:
        return [{"type": "array", "items": _schema_of(arguments[0])}]
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return [_object(hint)]
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        words = list(arguments) if origin is Literal else [member.value for member in hint]
        return [{"enum": words}, _INTERPOLATION]
    return _SCALARS[hint]


def _field_docs(cls: type[Any]) -> dict[str, str]:
    """The docstrings below the fields of a dataclass and of those that it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            docs |= _own_field_docs(base)
    return docs


def _own_field_docs(cls: type[Any]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs
