"""`mimo-launch advise`."""

import argparse

from launcher.advise.options import request_from
from launcher.advise.render import as_json, as_text
from launcher.advise.run_advice import advise_run
from launcher.commands.found_run import run_of
from launcher.exit_code import ExitCode
from launcher.trace.writer import steps_from


def run(arguments: argparse.Namespace) -> int:
    """Print the step times that other layouts of a run are predicted to have."""
    request = request_from(
        top=arguments.top,
        samples=arguments.samples,
        pp=arguments.pp,
        layers=arguments.layers,
        tp_efficiency=arguments.tp_efficiency,
    )
    steps = steps_from(arguments.steps)
    _, files, plan = run_of(arguments.job)
    advice = advise_run(files, plan, request, steps)
    print(as_json(advice) if arguments.json else as_text(advice))
    return ExitCode.SUCCESS
