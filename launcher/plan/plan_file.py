"""Reading a plan that was made earlier: from a file, or from a variable if the hosts share no file system."""

import base64
import zlib
from collections.abc import Callable
from pathlib import Path

from launcher.config.mistakes import InvalidValueError
from launcher.errors import ConfigError
from launcher.formatting import printable
from launcher.plan.launch_plan import LaunchPlan
from mimo_role.host import environ

PLAN = "MIMO_PLAN"
"""The variable that carries a plan into a container; `@MIMO_PLAN` in place of a config."""


def is_plan(path: Path) -> bool:
    """Whether a command's CONFIG is a plan."""
    return path.suffix == ".json" or str(path).startswith("@")


def load_plan(path: Path) -> tuple[LaunchPlan, str]:
    """Read a plan from a file or, for a path like `@MIMO_PLAN`, from a variable.

    Returns:
        The plan, and the resolved config from the file beside it; empty if there is none.

    Raises:
        ConfigError: there is no plan, or it is not one of this version.
    """
    if str(path).startswith("@"):
        return _parse(path, lambda: _unpack(environ.get(str(path)[1:]) or "")).under(Path.cwd()), ""
    plan = read_plan(path)
    beside = path.with_name("config.yaml")
    return plan, beside.read_text(encoding="utf-8") if beside.exists() else ""


def read_plan(path: Path) -> LaunchPlan:
    """Read a plan from a file, and check it.

    Raises:
        ConfigError: there is no such file, or it is not a plan of this version.
    """
    return _parse(path, lambda: path.read_text(encoding="utf-8"))


def pack(plan: LaunchPlan) -> str:
    """A plan as the value of a variable."""
    return base64.b64encode(zlib.compress(plan.to_json().encode(), level=9)).decode()


def _unpack(text: str) -> str:
    return zlib.decompress(base64.b64decode(text, validate=True)).decode()


def _parse(path: Path, read: Callable[[], str]) -> LaunchPlan:
    try:
        plan = LaunchPlan.from_json(read())
        _check(plan)
        return plan
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except InvalidValueError as error:
        raise ConfigError(f"{path}: not a plan of this mimo-launch ({printable(str(error))})") from None
    except (OSError, ValueError, RecursionError, zlib.error) as error:
        raise ConfigError(f"{path}: not a plan of this mimo-launch ({type(error).__name__}: {error})") from None


def _check(plan: LaunchPlan) -> None:
    """Check what type hints cannot express.

    Raises:
        InvalidValueError: nodes that do not cover the world, or an entry of no kind or of several.
    """
    end = 0
    for index, node in enumerate(plan.nodes):
        if node.first_rank != end or node.procs < 1:
            problem = f"{node.procs} ranks from rank {node.first_rank}; the next one is rank {end}"
            raise InvalidValueError(f"nodes[{index}]", problem)
        end += node.procs
    if end != plan.topology.world_size:
        raise InvalidValueError("nodes", f"they run {end} ranks of {plan.topology.world_size}")
    kinds = [kind for kind in ("script", "module", "command") if getattr(plan.entry, kind)]
    if len(kinds) != 1:
        found = " and ".join(kinds) or "none of them"
        raise InvalidValueError("entry", f"has exactly one of script, module, command; found {found}")
    if set(plan.module_env) != set(plan.topology.grids):
        raise InvalidValueError("module_env", f"not that of {', '.join(plan.topology.grids)}")
