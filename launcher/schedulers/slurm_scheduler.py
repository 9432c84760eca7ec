"""SLURM behind torchx's scheduler interface.

torchx's own SLURM scheduler makes a component for every node, knows three options, and puts variables where a comma ends
them. This one makes a component for every pool. It is handed to torchx's `Runner`, not registered as an entry point: that
would hide torchx's own schedulers from the user's whole environment (torchx 0.7).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from torchx.schedulers.api import DescribeAppResponse, ListAppResponse, Scheduler, Stream
from torchx.specs import AppDef, AppDryRunInfo, AppState, ReplicaStatus, Role, RoleStatus, runopts

from launcher.errors import LaunchError
from launcher.jobs import Job
from launcher.logs.reader import STREAMS, LogFilter
from launcher.plan.launch_plan import LaunchPlan
from launcher.schedulers import slurm_client
from launcher.schedulers.sbatch_script import Component, SbatchJob, script_of
from launcher.schedulers.submission import JobRecord, Submission
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

_STREAMS = {None: STREAMS, Stream.COMBINED: STREAMS, Stream.STDOUT: ("stdout",), Stream.STDERR: ("stderr",)}

_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"}
"""How SLURM's commands find their cluster."""


@dataclass(frozen=True)
class SbatchRequest:
    """What is handed to sbatch, and where."""

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
        options.add("job_dir", type_=str, help="the submission's folder, where sbatch is called", required=True)
        options.add("cwd", type_=str, help="the folder in which the job runs", required=True)
        options.add("title", type_=str, help="what the script says of itself", default="")
        return options

    def _validate(self, app: AppDef, scheduler: str) -> None:
        """Roles need no resources here: the pools' options say what a node has."""

    def _submit_dryrun(self, app: AppDef, cfg: Mapping[str, Any]) -> AppDryRunInfo[SbatchRequest]:
        role = app.roles[0]
        job = SbatchJob(
            name=app.name,
            title=str(cfg["title"]),
            components=tuple(self._components[role.name] for role in app.roles),
            command=(role.entrypoint, *role.args),
            folder=str(cfg["cwd"]),
            env=role.env,
        )
        return AppDryRunInfo(SbatchRequest(job, Submission(Path(cfg["job_dir"]))), str)

    def schedule(self, dryrun_info: AppDryRunInfo[SbatchRequest]) -> str:
        """Write the script and hand it to sbatch; return the job's id.

        Raises:
            LaunchError: sbatch refuses, with its own words.
        """
        request = dryrun_info.request
        request.submission.script_file.write_text(script_of(request.job), encoding="utf-8")
        with environ.without(_belongs_to_another_job):
            submit = ["sbatch", "--parsable", f"--chdir={request.submission.folder}", str(request.submission.script_file)]
            done = slurm_client.run(submit)
        if done.returncode != 0:
            raise LaunchError(f"sbatch refuses {request.submission.script_file}: {slurm_client.said(done)}")
        job_id = done.stdout.strip().partition(";")[0]
        request.submission.record(JobRecord(NAME, job_id))
        return job_id

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """The job's state, with a role for each pool and a replica for each of its nodes."""
        job = slurm_client.find(app_id)
        if job is None:
            return None
        state = _app_state(job.state)
        plan = _plan_of(job.folder)
        nodes = Counter(node.pool for node in plan.nodes) if plan is not None else {}
        roles = [Role(name=pool, image="", num_replicas=count) for pool, count in nodes.items()]
        statuses = [
            RoleStatus(pool, [ReplicaStatus(index, state, pool, "") for index in range(count)]) for pool, count in nodes.items()
        ]
        return DescribeAppResponse(app_id=app_id, state=state, msg=job.state, roles=roles, roles_statuses=statuses)

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """The lines of the ranks on the k-th node of a pool.

        Raises:
            LaunchError: no such job, or no such node.
            ValueError: `since` or `until`: lines have no time.
        """
        if since or until:
            raise ValueError("lines have no time here; leave since and until out")
        job = slurm_client.find(app_id)
        plan = _plan_of(job.folder) if job is not None else None
        if job is None or plan is None:
            raise LaunchError(f"job {app_id}: not known, or not submitted by mimo-launch")
        nodes = [node for node in plan.nodes if node.pool == role_name]
        if k >= len(nodes):
            raise LaunchError(f"job {app_id}: no node {k} on pool {role_name}")
        wanted = LogFilter(ranks=tuple(nodes[k].ranks), pattern=regex, streams=_STREAMS[streams])
        found = Job(job, Submission(Path(job.folder)).run_dir, Submission(Path(job.folder)))
        return found.lines(wanted, follow=should_tail)

    def list(self) -> list[ListAppResponse]:
        """The user's jobs that squeue still knows."""
        return [ListAppResponse(app_id=job_id, state=_app_state(state)) for job_id, state in slurm_client.mine().items()]

    def _cancel_existing(self, app_id: str) -> None:
        slurm_client.cancel(app_id)


def create_scheduler(session_name: str, **_: object) -> MimoSlurmScheduler:
    """torchx's scheduler factory, for what needs no components: describing, listing, cancelling, logs."""
    return MimoSlurmScheduler(session_name)


def _app_state(state: str) -> AppState:
    return _STATES.get(state, AppState.FAILED if state in slurm_client.OVER else AppState.PENDING)


def _plan_of(folder: str) -> LaunchPlan | None:
    try:
        return LaunchPlan.from_json(Submission(Path(folder)).plan_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _belongs_to_another_job(name: str) -> bool:
    """Variables of a job around this process: sbatch and srun would take them for options of the new one."""
    if name in _KEPT:
        return False
    ours = name.startswith(("MIMO_", "TORCHELASTIC_")) and name != "MIMO_DETECT"
    ranks = name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return ours or ranks or name.startswith(("SLURM_", "SBATCH_", "SRUN_", "PMI_", "PMIX_"))
