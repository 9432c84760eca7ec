"""`mimo-launch plan`."""

import argparse

from launcher.commands.planned import planned
from launcher.exit_code import ExitCode
from launcher.plan.render import as_json, as_table


def run(arguments: argparse.Namespace) -> int:
    """Print the plan as a table, as JSON or as an SVG picture."""
    plan, _, _ = planned(arguments)
    if arguments.svg:
        from launcher.run_report.layout_svg import layout_svg

        print(layout_svg(plan), end="")
    else:
        print(as_json(plan) if arguments.json else as_table(plan))
    return ExitCode.SUCCESS
