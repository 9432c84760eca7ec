"""A plan that was made earlier: from a file, or from a variable where there is no common file system."""

import base64
import zlib
from pathlib import Path

from launcher.errors import ConfigError
from launcher.plan import LaunchPlan
from mimo_role import environ

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
        plan = LaunchPlan.from_json(text)
        plan.to_json()  # what cannot be written again was of another form
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
