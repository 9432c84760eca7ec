"""A job by the name that the user has for it: SLURM's id, a run folder, or a torchx handle."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.logs.reader import LogFilter, lines_of
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.reader import RunReport, describe, host_of, is_locked, read_report
from launcher.schedulers import slurm_client
from launcher.schedulers.slurm_client import SlurmJob
from launcher.schedulers.submission import Submission


@dataclass(frozen=True)
class Job:
    """What was found under a name. At least one of SLURM's job and a run folder is there."""

    slurm: SlurmJob | None
    run_dir: Path | None
    submission: Submission | None = None

    def files(self) -> Path | None:
        """The folder with this job's plan, hosts and logs: the run folder, or where a later run has put them; `None` before."""
        if self.run_dir is None or self.slurm is None:
            return self.run_dir
        kept = [path.parent for path in self.run_dir.glob("previous/*/slurm_job")]
        return next((path for path in [self.run_dir, *sorted(kept, reverse=True)] if _job_in(path) == self.slurm.job_id), None)

    def plan(self) -> LaunchPlan | None:
        """The plan that it runs.

        Raises:
            LaunchError: it is of another version.
        """
        files = self.files()
        found = [files / "plan.json"] if files is not None else []
        for path in [*found, *([self.submission.plan_file] if self.submission is not None else [])]:
            try:
                return LaunchPlan.from_json(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise LaunchError(f"{path}: not a plan of this mimo-launch ({type(error).__name__}: {error})") from None
        return None

    def hosts(self, plan: LaunchPlan) -> dict[str, str]:
        """The host of each of its plan's nodes, once a run has begun."""
        files = self.files()
        if files is None:
            return {}
        if len(plan.nodes) == 1:
            return {plan.nodes[0].name: host} if (host := host_of(files)) is not None else {}
        try:
            return {node["name"]: node["host"] for node in json.loads((files / "nodes.json").read_text(encoding="utf-8"))}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def report(self) -> RunReport | None:
        """How it ended, by what mimo-launch wrote down; a job that SLURM has started again has none until that start ends."""
        files = self.files()
        return read_report(files) if files is not None and (self.slurm is None or self.slurm.is_over) else None

    def is_over(self) -> bool:
        """Whether it has ended: by SLURM, else by the run folder's lock."""
        if self.slurm is not None:
            return slurm_client.is_over(self.slurm.job_id)
        return self.run_dir is None or not is_locked(self.run_dir)

    def lines(self, wanted: LogFilter, *, follow: bool) -> Iterator[str]:
        """The ranks' output.

        Raises:
            LaunchError: there is no run folder, or the filter fits nothing.
        """
        plan = self.plan()
        if plan is None:
            name = f"job {self.slurm.job_id}" if self.slurm is not None else str(self.run_dir)
            raise LaunchError(f"{name}: no run folder of mimo-launch is known for it; give the folder in its place")
        return lines_of(self.files, plan, wanted, self.is_over if follow else None)

    def own_output(self) -> Path | None:
        """What SLURM and mimo-launch themselves wrote, if it was submitted."""
        if self.slurm is None:
            return None
        path = Path(self.slurm.folder) / f"slurm-{self.slurm.job_id}.out"
        return path if path.exists() else None


def find(name: str) -> Job:
    """Look a job up.

    Raises:
        LaunchError: nothing is known under this name.
    """
    text = name.removeprefix("slurm://").rpartition("/")[2] if name.startswith("slurm://") else name
    job_id = text.partition("+")[0]
    if job_id.isascii() and job_id.isdigit() and not Path(name).is_dir():
        return _by_id(job_id)
    return _by_folder(Path(name))


def as_table(job: Job) -> str:
    """A job's state, its nodes, and which rank runs what on which host."""
    from tabulate import tabulate

    lines = []
    if job.slurm is not None:
        restarts = max(part.restarts for part in job.slurm.components)
        lines.append(f"job {job.slurm.job_id} ({job.slurm.name}): {job.slurm.state}{_times(restarts)}")
        rows = [_component_row(part) for part in job.slurm.components]
        lines += ["", tabulate(rows, headers=["job", "state", "nodes", "exit code", "reason"], disable_numparse=True)]
    if job.run_dir is not None:
        state = f": {describe(job.run_dir)}" if job.slurm is None else ""
        lines += ["", f"run folder: {job.run_dir}{state}"]
    plan, problem = _plan_or_problem(job)
    lines += ["", problem] if problem else []
    if plan is not None:
        rows = [
            [f"{ranks.start}-{ranks.stop - 1}" if len(ranks) > 1 else str(ranks.start), node, pool, host, modules]
            for node, pool, host, ranks, modules in _node_rows(plan, job.hosts(plan))
        ]
        lines += ["", tabulate(rows, headers=["ranks", "node", "pool", "host", "modules"], disable_numparse=True)]
    return "\n".join(lines).strip("\n")


def as_json(job: Job) -> str:
    """The same for programs."""
    plan, _ = _plan_or_problem(job)
    slurm, report = job.slurm, job.report()
    value: dict[str, Any] = {
        "job_id": slurm.job_id if slurm is not None else None,
        "state": slurm.state if slurm is not None else ("OVER" if job.is_over() else "RUNNING"),
        "components": [asdict(part) for part in slurm.components] if slurm is not None else [],
        "run_dir": str(job.run_dir) if job.run_dir is not None else None,
        "report": asdict(report) if report is not None else None,
        "nodes": [
            {"name": node, "pool": pool, "host": host or None, "ranks": list(ranks), "modules": modules.split(", ")}
            for node, pool, host, ranks, modules in (_node_rows(plan, job.hosts(plan)) if plan is not None else ())
        ],
    }
    return json.dumps(value)


def _by_id(job_id: str) -> Job:
    found = slurm_client.find(job_id)
    if found is None:
        raise LaunchError(f"job {job_id}: SLURM does not know it (any more); give its run folder in its place")
    submission = Submission(Path(found.folder))
    known = submission.plan_file.exists()
    return Job(found, submission.run_dir if known else None, submission if known else None)


def _by_folder(folder: Path) -> Job:
    if not folder.is_dir():
        raise LaunchError(f"{folder}: neither a job's id nor a run folder")
    submission = Submission.latest(folder)
    record = submission.recorded() if submission is not None else None
    if record is None and not (folder / "run_id").exists() and any(folder.glob("jobs/*/plan.json")):
        raise LaunchError(f"{folder}: nothing has run here, and no scheduler has taken what was to be submitted")
    if record is None and not (folder / "run_id").exists():
        raise LaunchError(f"{folder}: not a run folder of mimo-launch")
    begun = _job_in(folder)
    latest = record.job_id if record is not None else begun
    job_id = begun if is_locked(folder) else latest
    try:
        found = slurm_client.find(job_id) if job_id is not None else None
    except LaunchError:  # a machine without SLURM can still read the folder
        found = None
    return _by_id(found.job_id) if found is not None else Job(None, folder.absolute(), submission)


def _plan_or_problem(job: Job) -> tuple[LaunchPlan | None, str]:
    try:
        return job.plan(), ""
    except LaunchError as error:
        return None, str(error)


def _job_in(folder: Path) -> str | None:
    """The SLURM job whose run a folder holds."""
    try:
        return (folder / "slurm_job").read_text(encoding="utf-8")
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
    """Node, pool, host, and the neighbouring ranks there that run the same modules."""
    for node in plan.nodes:
        host = hosts.get(node.name, "")
        for modules, ranks in groupby(node.ranks, lambda rank: ", ".join(plan.topology.modules_of(rank))):
            found = list(ranks)
            yield node.name, node.pool, host, range(found[0], found[-1] + 1), modules


def _times(restarts: int) -> str:
    return "" if not restarts else f", started again {restarts} time{'s' if restarts > 1 else ''}"
