"""`mimo-launch logs`."""

import argparse

from launcher import jobs
from launcher.commands.found_run import is_torchx_handle
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.logs.reader import LogFilter, ranks_from


def run(arguments: argparse.Namespace) -> int:
    """Print the output of a job's ranks."""
    if is_torchx_handle(arguments.job):
        raise LaunchError(f"{arguments.job}: torchx has its logs: torchx log {arguments.job}")
    wanted = LogFilter(module=arguments.module, stage=arguments.stage, ranks=ranks_from(arguments.rank))
    job = jobs.find(arguments.job)
    if wanted == LogFilter() and not arguments.follow and (own := job.own_output()) is not None:
        print(f"[job] {own}")
    for line in job.lines(wanted, follow=arguments.follow):
        print(line, end="", flush=arguments.follow)
    return ExitCode.SUCCESS
