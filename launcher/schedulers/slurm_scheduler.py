"""SLURM behind torchx's scheduler interface.

torchx's own SLURM scheduler makes one component per node, has three options, and passes variables in a form in which a
comma ends a value. This one makes one component per pool. It is passed to torchx's `Runner`, not registered as an entry
point: that would hide torchx's own schedulers from the user's whole environment (torchx 0.7).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.reserved_variables import RESERVED_VARIABLES
from launcher.errors import LaunchError
from launcher.schedulers import slurm_client
from launcher.schedulers.sbatch_script import Component, SbatchJob, script_of
from launcher.schedulers.submission import JobRecord, Submission
from launcher.schedulers.torchx_api import (
    AppDef,
    AppDryRunInfo,
    AppState,
    DescribeAppResponse,
    ListAppResponse,
    Scheduler,
    runopts,
)
from mimo_role.host import environ

NAME = "slurm"

_STATES = {
    "PENDING": AppState.PENDING,
    "CONFIGURING": AppState.PENDING,
    "SUSPENDED": AppState.PENDING,
    "RUNNING": AppState.RUNNING,
    "COMPLETING": AppState.RUNNING,
    "STOPPED": AppState.RUNNING,
    "COMPLETED": AppState.SUCCEEDED,
    "CANCELLED": AppState.CANCELLED,
}

_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
"""Variables by which SLURM's commands find their cluster."""


@dataclass(frozen=True)
class SbatchRequest:
    """The job for sbatch, and the submission that it belongs to."""

    job: SbatchJob
    submission: Submission

    def __str__(self) -> str:
        return script_of(self.job)


class MimoSlurmScheduler(Scheduler[Mapping[str, Any]]):
    """One heterogeneous component per role, one task per replica. `components` belong to the roles by name."""

    def __init__(self, session_name: str, components: Iterable[Component] = ()) -> None:
        super().__init__(NAME, session_name)
        self._components = {component.pool: component for component in components}

    def _run_opts(self) -> runopts:
        options = runopts()
        options.add("job_dir", type_=str, help="the directory of the submission, in which sbatch is called", required=True)
        options.add("cwd", type_=str, help="the working directory of the job", required=True)
        options.add("title", type_=str, help="a comment in the second line of the script", default="")
        return options

    def _validate(self, app: AppDef, scheduler: str) -> None:
        """Roles need no resources here: the pools' sbatch options request them."""

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[SbatchRequest]:
        role = app.roles[0]
        job = SbatchJob(
            name=app.name,
            title=str(cfg["title"]),
            components=tuple(self._components[role.name] for role in app.roles),
            command=(role.entrypoint, *role.args),
            cwd=str(cfg["cwd"]),
            env=role.env,
        )
        return AppDryRunInfo(SbatchRequest(job, Submission(Path(cfg["job_dir"]))), str)

    def schedule(self, dryrun_info: AppDryRunInfo[SbatchRequest]) -> str:
        """Write the script and submit it with sbatch; return the id of the job.

        Raises:
            LaunchError: sbatch failed; its error message is included.
        """
        request = dryrun_info.request
        request.submission.script_file.write_text(script_of(request.job), encoding="utf-8")
        with environ.without(_belongs_to_another_job):
            submit = ["sbatch", "--parsable", f"--chdir={request.submission.path}", str(request.submission.script_file)]
            done = slurm_client.run(submit)
        if done.returncode != 0:
            raise LaunchError(f"sbatch failed for {request.submission.script_file}: {slurm_client.error_of(done)}")
        job_id = done.stdout.strip().partition(";")[0]
        request.submission.record(JobRecord(NAME, job_id))
        return job_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """The state of a job."""
        job = slurm_client.find(app_id)
        if job is None:
            return None
        state = _STATES.get(job.state, AppState.FAILED if job.is_over else AppState.PENDING)
        return DescribeAppResponse(app_id=app_id, state=state, msg=job.state)

    def list(self) -> list[ListAppResponse]:
        """torchx's abstract method, which no command of mimo-launch calls."""
        raise NotImplementedError("squeue --me lists the jobs of a user")

    def _cancel_existing(self, app_id: str) -> None:
        slurm_client.cancel(app_id)


def _belongs_to_another_job(name: str) -> bool:
    """Variables of a job that this process runs in: sbatch and srun would use them as options of the new job."""
    if name in _KEPT:
        return False
    return name in RESERVED_VARIABLES or name.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_"))
