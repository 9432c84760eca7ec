"""What commands print to stderr."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from launcher.plan.launch_plan import LaunchPlan


def say(text: str) -> None:
    """Print a message of mimo-launch."""
    print(f"mimo-launch: {text}", file=sys.stderr)


def warn(plan: "LaunchPlan") -> None:
    """Print the plan's warnings."""
    for warning in plan.warnings:
        say(f"warning ({warning.code}): {warning.message}")
