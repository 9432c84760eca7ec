"""`mimo-launch status`."""

import argparse

from launcher import jobs
from launcher.commands.found_run import is_torchx_handle
from launcher.exit_code import ExitCode


def run(arguments: argparse.Namespace) -> int:
    """Print the state of a job."""
    if is_torchx_handle(arguments.job):
        from launcher.schedulers.submit import status_of

        print(status_of(arguments.job))
        return ExitCode.SUCCESS
    job = jobs.find(arguments.job, or_rehearsal=True)
    print(jobs.as_json(job) if arguments.json else jobs.as_table(job))
    return ExitCode.SUCCESS
