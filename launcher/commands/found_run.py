"""The job that a command line names by a run directory, an id or a handle."""

from launcher import jobs
from launcher.errors import LaunchError
from launcher.jobs import Job
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout


def run_of(text: str, *, or_rehearsal: bool = False) -> tuple[Job, RunDirLayout, LaunchPlan]:
    """The job, its run directory and its plan.

    Args:
        text: a run directory, an id or a handle.
        or_rehearsal: where nothing but a rehearsal is in the run directory, take that.

    Raises:
        LaunchError: there is no such job, or it has no run directory on this machine.
    """
    if not is_torchx_handle(text):
        job = jobs.find(text, or_rehearsal=or_rehearsal)
        files, plan = job.files(), job.plan()
        if files is not None and plan is not None:
            return job, files, plan
    raise LaunchError(f"{text}: no run directory of mimo-launch found for it; give the directory instead")


def is_torchx_handle(job: str) -> bool:
    """Whether this is a torchx handle of another scheduler than SLURM."""
    return "://" in job and not job.startswith("slurm://")
