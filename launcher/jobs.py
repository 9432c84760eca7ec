"""Looks up a job by its SLURM id, its run directory or its torchx handle, and shows its state."""

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError, LaunchError
from launcher.formatting import ranges
from launcher.live.summary import read_view, summary
from launcher.live.view import LiveView
from launcher.logs.reader import LogFilter, lines_of
from launcher.outcome import Outcome
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import read_plan
from launcher.run_dir.layout import RunDirLayout, SubmissionLayout
from launcher.run_dir.lock import is_locked
from launcher.run_dir.reader import describe, host_of, read_report
from launcher.run_dir.rehearsal_result import Rehearsal, is_rehearsal, read_rehearsal
from launcher.run_report.rehearsal_text import lines_of_rehearsal
from launcher.schedulers import slurm_client
from launcher.schedulers.slurm_client import SlurmJob
from launcher.schedulers.submission import Submission
from launcher.stragglers.text import describe_all


@dataclass(frozen=True)
class Job:
    """One job. It has a SLURM job, a run directory, or both."""

    slurm: SlurmJob | None
    run_dir: RunDirLayout | None
    submission: Submission | None = None

    def files(self) -> RunDirLayout | None:
        """The directory with this job's plan, hosts and logs; `None` as long as it has not begun.

        It is the run directory, or the place to which a later run has moved them.
        """
        if self.run_dir is None or self.slurm is None:
            return self.run_dir
        return next((run for run in self.run_dir.of_slurm_jobs() if _job_in(run) == self.slurm.job_id), None)

    def plan(self) -> LaunchPlan | None:
        """The plan of the job.

        Raises:
            ConfigError: it was written by another version.
        """
        files = self.files()
        found = [files.plan_file] if files is not None else []
        for path in [*found, *([self.submission.plan_file] if self.submission is not None else [])]:
            if path.exists():
                return read_plan(path)
        return None

    def hosts(self, plan: LaunchPlan) -> dict[str, str]:
        """The host of each node of the plan, once the job has begun. A rehearsal has no hosts."""
        files = self.files()
        if files is None or is_rehearsal(files):
            return {}
        if len(plan.nodes) == 1:
            return {plan.nodes[0].name: host} if (host := host_of(files)) is not None else {}
        try:
            return {node["name"]: node["host"] for node in json.loads(files.nodes_file.read_text(encoding="utf-8"))}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def report(self) -> Outcome | None:
        """The report that mimo-launch has written; `None` while a requeued job runs again."""
        files = self.files()
        return read_report(files) if files is not None and (self.slurm is None or self.slurm.is_over) else None

    def rehearsal(self) -> Rehearsal | None:
        """The rehearsal, if this is one."""
        return read_rehearsal(self.run_dir) if self.run_dir is not None and self.slurm is None else None

    def live_view(self) -> LiveView | None:
        """What the ranks do now; `None` unless the job is going on and they have recorded something."""
        files = self.files()
        if files is None or read_report(files) is not None or self.is_over():
            return None
        with suppress(LaunchError):  # of another version
            return read_view(files)
        return None

    def is_over(self) -> bool:
        """Whether it has ended: by SLURM, else by the lock of the run directory."""
        if self.slurm is not None:
            return slurm_client.is_over(self.slurm.job_id)
        return self.run_dir is None or not is_locked(self.run_dir)

    def lines(self, wanted: LogFilter, *, follow: bool) -> Iterator[str]:
        """The ranks' output.

        Raises:
            LaunchError: there is no run directory, or no rank matches.
        """
        plan = self.plan()
        if plan is None:
            name = f"job {self.slurm.job_id}" if self.slurm is not None else "the job"
            raise LaunchError(f"{name}: no run directory of mimo-launch found for it; give the directory instead")
        return lines_of(self.files, plan, wanted, self.is_over if follow else None)

    def own_output(self) -> Path | None:
        """The file with the output of SLURM and mimo-launch themselves, if it was submitted."""
        if self.slurm is None:
            return None
        path = SubmissionLayout(Path(self.slurm.cwd)).output_file(self.slurm.job_id)
        return path if path.exists() else None


def find(name: str, *, or_rehearsal: bool = False) -> Job:
    """Look up a job by the name that the user gave.

    Args:
        name: the id of a SLURM job, its handle of torchx, or a run directory.
        or_rehearsal: where nothing but a rehearsal is in the run directory, look up that.

    Raises:
        LaunchError: there is no such job.
    """
    text = name.removeprefix("slurm://").rpartition("/")[2] if name.startswith("slurm://") else name
    job_id = text.partition("+")[0]
    if job_id.isascii() and job_id.isdigit() and not Path(name).is_dir():
        return _by_id(job_id)
    run_dir = RunDirLayout(Path(name).absolute())
    if or_rehearsal and _has_rehearsal_only(run_dir):
        return Job(None, run_dir.rehearsal)
    return _by_run_dir(run_dir, name)


def as_table(job: Job) -> str:
    """The state of a job, and the nodes with their hosts, ranks and modules."""
    from tabulate import tabulate

    lines = []
    if job.slurm is not None:
        restarts = max(part.restarts for part in job.slurm.components)
        requeued = f", requeued {'once' if restarts == 1 else f'{restarts} times'}" if restarts else ""
        lines.append(f"job {job.slurm.job_id} ({job.slurm.name}): {job.slurm.state}{requeued}")
        rows = [_component_row(part) for part in job.slurm.components]
        lines += ["", tabulate(rows, headers=["job", "state", "nodes", "exit code", "reason"], disable_numparse=True)]
    if job.run_dir is not None:
        state = f": {describe(job.run_dir)}" if job.slurm is None else ""
        lines += ["", f"run directory: {job.run_dir.path}{state}"]
    if (view := job.live_view()) is not None:
        lines += [f"  {line}" for line in summary(view)]
    plan, problem = _plan_or_problem(job)
    lines += ["", problem] if problem else []
    if plan is not None:
        rows = [
            [ranges(ranks), node, pool, host, modules] for node, pool, host, ranks, modules in _node_rows(plan, job.hosts(plan))
        ]
        lines += ["", tabulate(rows, headers=["ranks", "node", "pool", "host", "modules"], disable_numparse=True)]
    if (report := job.report()) is not None:
        lines += ["", *describe_all(report.stragglers)]
    if (rehearsal := job.rehearsal()) is not None:
        lines += lines_of_rehearsal(rehearsal)
    return "\n".join(lines).strip("\n")


def as_json(job: Job) -> str:
    """The same for programs."""
    plan, _ = _plan_or_problem(job)
    slurm, report = job.slurm, job.report()
    view, rehearsal = job.live_view(), job.rehearsal()
    value: dict[str, Any] = {
        "job_id": slurm.job_id if slurm is not None else None,
        "state": slurm.state if slurm is not None else ("OVER" if job.is_over() else "RUNNING"),
        "components": [asdict(part) for part in slurm.components] if slurm is not None else [],
        "run_dir": str(job.run_dir.path) if job.run_dir is not None else None,
        "report": report.summary() if report is not None else None,
        "rehearsal": rehearsal.as_dict() if rehearsal is not None else None,
        "live": json.loads(view.to_json()) if view is not None else None,
        "nodes": [
            {"name": node, "pool": pool, "host": host or None, "ranks": list(ranks), "modules": modules.split(", ")}
            for node, pool, host, ranks, modules in (_node_rows(plan, job.hosts(plan)) if plan is not None else ())
        ],
        "stragglers": list(map(dict, report.stragglers)) if report is not None else [],
    }
    return json.dumps(value)


def _by_id(job_id: str) -> Job:
    found = slurm_client.find(job_id)
    if found is None:
        raise LaunchError(f"job {job_id}: not known to SLURM (any more); give its run directory instead")
    submission = Submission(Path(found.cwd))
    known = submission.plan_file.exists()
    return Job(found, submission.run_dir if known else None, submission if known else None)


def _has_rehearsal_only(run_dir: RunDirLayout) -> bool:
    return run_dir.rehearsal.run_id_file.exists() and not (run_dir.run_id_file.exists() or run_dir.has_submissions())


def _by_run_dir(run_dir: RunDirLayout, name: str) -> Job:
    if not run_dir.path.is_dir():
        raise LaunchError(f"{name}: neither the id of a job nor a run directory")
    submission = Submission.latest(run_dir)
    record = submission.recorded() if submission is not None else None
    if record is None and not run_dir.run_id_file.exists():
        if run_dir.has_submissions():
            raise LaunchError(f"{name}: nothing has run here, and no scheduler has accepted a job from it")
        if run_dir.rehearsal.run_id_file.exists():
            raise LaunchError(f"{name}: nothing has run here; the job was rehearsed: {run_dir.rehearsal.path}")
        raise LaunchError(f"{name}: not a run directory of mimo-launch")
    begun = _job_in(run_dir)
    latest = record.job_id if record is not None else begun
    job_id = begun if is_locked(run_dir) else latest
    try:
        found = slurm_client.find(job_id) if job_id is not None else None
    except LaunchError:  # a machine without SLURM can still read the directory
        found = None
    if found is None:
        return Job(None, run_dir, submission)
    job = _by_id(found.job_id)
    # A job of the user's own script does not lead to the run directory.
    return job if job.run_dir is not None else replace(job, run_dir=run_dir)


def _plan_or_problem(job: Job) -> tuple[LaunchPlan | None, str]:
    try:
        return job.plan(), ""
    except ConfigError as error:
        return None, str(error)


def _job_in(run_dir: RunDirLayout) -> str | None:
    """The id of the SLURM job that a run belongs to."""
    try:
        return run_dir.slurm_job_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _component_row(part: slurm_client.JobComponent) -> list[str]:
    return [
        part.name,
        part.state,
        part.nodes or "-",
        "-" if part.exit_code is None else str(part.exit_code),
        part.reason or "-",
    ]


def _node_rows(plan: LaunchPlan, hosts: dict[str, str]) -> Iterable[tuple[str, str, str, range, str]]:
    """Node, pool, host, and consecutive ranks there that run the same modules."""
    for node in plan.nodes:
        host = hosts.get(node.name, "")
        for modules, ranks in groupby(node.ranks, lambda rank: ", ".join(plan.topology.modules_of(rank))):
            found = list(ranks)
            yield node.name, node.pool, host, range(found[0], found[-1] + 1), modules
