"""A plan that was made earlier: from a file, or from a variable where there is no common file system."""

import base64
import json
import types
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from launcher.config.literals import printable, shortened
from launcher.config.loader import LONGEST_S
from launcher.errors import ConfigError
from launcher.plan.launch_plan import LaunchPlan
from mimo_role import Topology
from mimo_role.host import environ

PLAN = "MIMO_PLAN"
"""The variable that carries a plan into a container; `@MIMO_PLAN` in place of a config."""


def is_plan(path: Path) -> bool:
    """Whether a command's CONFIG is a plan."""
    return path.suffix == ".json" or str(path).startswith("@")


def load_plan(path: Path) -> tuple[LaunchPlan, str]:
    """Read a plan, and the resolved config that lies beside it, if one does.

    Raises:
        ConfigError: there is none, or it is not a plan of this version.
    """
    carried = str(path).startswith("@")
    try:
        text = _unpack(environ.get(str(path)[1:]) or "") if carried else path.read_text(encoding="utf-8")
        beside = path.with_name("config.yaml")
        config_text = beside.read_text(encoding="utf-8") if not carried and beside.exists() else ""
        for problem in _problems(LaunchPlan, json.loads(text), ""):
            raise _FormError(problem)
        plan = LaunchPlan.from_json(text)
        plan.to_json()  # what cannot be written again was of another form
        _check(plan)
    except _FormError as error:
        raise ConfigError(f"{path}: not a plan of this mimo-launch ({printable(str(error))})") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise ConfigError(f"{path}: not a plan of this mimo-launch ({type(error).__name__}: {error})") from None
    if carried:
        plan = plan.under(Path.cwd())
    return plan, config_text


def pack(plan: LaunchPlan) -> str:
    """A plan as the value of a variable."""
    return base64.b64encode(zlib.compress(plan.to_json().encode(), level=9)).decode()


def _unpack(text: str) -> str:
    return zlib.decompress(base64.b64decode(text, validate=True)).decode()


class _FormError(Exception):
    """The message names the field at fault."""


def _problems(hint: Any, value: Any, key: str) -> Iterator[str]:
    """What is wrong with the JSON form of a value of this type. What a topology may be it tells itself."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        found = [list(_problems(choice, value, key)) for choice in arguments]
        if all(found):
            # Of choices the one that it comes closest to: a list with a wrong item is meant as a list.
            yield max((problems[0] for problems in found), key=lambda problem: not problem.startswith(f"{key}="))
    elif is_dataclass(hint) and hint is not Topology:
        yield from _problems_of_fields(hint, value, key)
    elif origin is Mapping and isinstance(value, dict):
        for name, item in value.items():
            yield from _problems(arguments[1], item, _child(key, name))
    elif origin is tuple and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _problems(arguments[0], item, f"{key}[{index}]")
    elif (wanted := _wanted(hint, value)) is not None:
        yield f"{key}={shortened(repr(value))} is not {wanted}"


def _problems_of_fields(cls: Any, value: Any, key: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{key}={shortened(repr(value))} is not a mapping" if key else "not a mapping"
        return
    hints = get_type_hints(cls)
    # What group options leave at their defaults is not written.
    required = {field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING}
    yield from (f"{_child(key, name)}: missing" for name in hints if name in required and name not in value)
    yield from (f"{_child(key, name)}: unknown" for name in value if name not in hints)
    for name, hint in hints.items():
        if name in value:
            yield from _problems(hint, value[name], _child(key, name))


def _wanted(hint: Any, value: Any) -> str | None:
    """What a value of this type would be, if this is none."""
    origin, number = get_origin(hint), isinstance(value, int | float) and not isinstance(value, bool)
    if origin is Literal or (isinstance(hint, type) and issubclass(hint, Enum)):
        allowed = get_args(hint) if origin is Literal else [member.value for member in hint]
        return None if value in allowed else " or ".join(allowed)
    for type_, fits, name in (
        (Topology, isinstance(value, dict), "a mapping"),
        (type(None), value is None, "null"),
        (str, isinstance(value, str), "text"),
        (bool, isinstance(value, bool), "true or false"),
        (int, number and isinstance(value, int), "a whole number"),
        (float, number and abs(value) <= LONGEST_S, f"a number up to {LONGEST_S:g}"),
    ):
        if hint is type_:
            return None if fits else name
    return "a mapping" if origin is Mapping else "a list"


def _child(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _check(plan: LaunchPlan) -> None:
    """What types cannot say, and would be noticed late.

    Raises:
        _FormError: nodes that are not all of the world, or an entry that is not one.
    """
    end = 0
    for index, node in enumerate(plan.nodes):
        if node.first_rank != end or node.procs < 1:
            raise _FormError(f"nodes[{index}]: {node.procs} ranks from rank {node.first_rank}; rank {end} is next")
        end += node.procs
    if end != plan.topology.world_size:
        raise _FormError(f"nodes: they run {end} ranks of {plan.topology.world_size}")
    kinds = [kind for kind in ("script", "module", "command") if getattr(plan.entry, kind)]
    if len(kinds) != 1:
        raise _FormError(f"entry: has exactly one of script, module, command; found {' and '.join(kinds) or 'none of them'}")
    if set(plan.module_env) != set(plan.topology.grids):
        raise _FormError(f"module_env: not that of {', '.join(plan.topology.grids)}")
