"""What mimo-launch uses of torchx, which the extra `submit` installs.

Raises:
    LaunchError: at the import of this module, where torchx or a package that it needs is missing.
"""

from launcher.errors import LaunchError

try:
    from torchx.runner.api import Runner
    from torchx.schedulers import get_scheduler_factories
    from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler
    from torchx.specs import AppDef, AppDryRunInfo, AppState, Resource, Role, macros, runopts
except ModuleNotFoundError as error:
    raise LaunchError(f'submitted jobs need torchx ({error}); install it: pip install "mimo-launch[submit]"') from error

__all__ = [
    "AppDef",
    "AppDryRunInfo",
    "AppState",
    "DescribeAppResponse",
    "ListAppResponse",
    "Resource",
    "Role",
    "Runner",
    "Scheduler",
    "get_scheduler_factories",
    "macros",
    "runopts",
]
