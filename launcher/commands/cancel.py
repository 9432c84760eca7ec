"""`mimo-launch cancel`."""

import argparse

from launcher import jobs
from launcher.commands.found_run import is_torchx_handle
from launcher.commands.messages import say
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.schedulers import slurm_client


def run(arguments: argparse.Namespace) -> int:
    """Cancel a submitted job."""
    if is_torchx_handle(arguments.job):
        from launcher.schedulers.submit import cancel

        cancel(arguments.job)
        return ExitCode.SUCCESS
    job = jobs.find(arguments.job)
    if job.slurm is None:
        raise LaunchError(f"{arguments.job}: a run on this machine, not a submitted job; end it with Ctrl-C")
    if job.slurm.is_over:
        say(f"job {job.slurm.job_id} has ended already: {job.slurm.state}")
    else:
        slurm_client.cancel(job.slurm.job_id)
        say(f"job {job.slurm.job_id} is cancelled")
    return ExitCode.SUCCESS
