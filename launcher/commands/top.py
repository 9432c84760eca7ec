"""`mimo-launch top`."""

import argparse
import sys

from launcher.errors import UsageError
from launcher.exit_code import ExitCode
from launcher.top import command

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600


def run(arguments: argparse.Namespace) -> int:
    """Show what the ranks of a job do: once, as lines, or in the terminal until the job or the user ends it."""
    if not MIN_INTERVAL_S <= arguments.interval <= MAX_INTERVAL_S:
        raise UsageError(f"--interval {arguments.interval:g}: give between {MIN_INTERVAL_S} and {MAX_INTERVAL_S} seconds")
    source = command.source_of(arguments.job)
    if arguments.once:
        print(command.once(source, sys.stdout, as_json=arguments.json), end="")
    elif arguments.json or not command.can_redraw(sys.stdout):
        for line in command.lines(source, arguments.interval, as_json=arguments.json):
            print(line, flush=True)
    else:
        last = command.watch(source, sys.stdout, sys.stdin, arguments.interval)
        print(last, end="")
    return ExitCode.SUCCESS
