"""`mimo-launch trace`."""

import argparse

from launcher.commands.found_run import run_of
from launcher.commands.messages import say
from launcher.exit_code import ExitCode
from launcher.formatting import counted, describe_ranks
from launcher.trace.writer import steps_from, write_trace


def run(arguments: argparse.Namespace) -> int:
    """Write a run's trace, and print where it is."""
    steps = steps_from(arguments.steps)
    _, files, plan = run_of(arguments.job)
    written = write_trace(files, plan, steps=steps, out=arguments.out)
    if written.without:
        say(f"no recording of {describe_ranks(plan.topology, written.without)}")
    print(f"wrote {written.path}: {counted(written.spans, 'span')} of {counted(written.ranks, 'rank')}")
    print("open it in https://ui.perfetto.dev or chrome://tracing")
    return ExitCode.SUCCESS
