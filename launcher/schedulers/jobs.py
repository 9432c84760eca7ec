"""A job by the name that the user has for it: SLURM's id, a run folder, or a torchx handle."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.plan import LaunchPlan
from launcher.schedulers import slurm_jobs
from launcher.schedulers.logs import LogFilter, lines_of
from launcher.schedulers.slurm_jobs import SlurmJob
from launcher.schedulers.submission import Submission


@dataclass(frozen=True)
class Job:
    """What was found under a name. At least one of the two is there."""

    slurm: SlurmJob | None
    run_dir: Path | None

    @property
    def plan(self) -> LaunchPlan | None:
        """The plan that it runs, from the run folder or from the last submission there."""
        if self.run_dir is None:
            return None
        submission = Submission.latest(self.run_dir)
        found = [submission.plan_file] if submission is not None else []
        for path in [self.run_dir / "plan.json", *found]:
            try:
                return LaunchPlan.from_json(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise LaunchError(f"{path}: not a plan of this mimo-launch ({error})") from None
        return None

    @property
    def hosts(self) -> dict[str, str]:
        """The host of each of the plan's nodes, once a run on several has begun."""
        try:
            found = json.loads((self.run_dir / "nodes.json").read_text(encoding="utf-8")) if self.run_dir is not None else []
            return {node["name"]: node["host"] for node in found}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def is_over(self) -> bool:
        """Whether it has ended: by SLURM, else by the run folder's lock."""
        if self.slurm is not None:
            now = slurm_jobs.find(self.slurm.job_id)
            return now is None or now.is_over
        return self.run_dir is None or not _is_locked(self.run_dir / ".lock")

    def lines(self, wanted: LogFilter, *, follow: bool) -> Iterator[str]:
        """The ranks' output.

        Raises:
            LaunchError: there is no run folder, or the filter fits nothing.
        """
        plan = self.plan
        if self.run_dir is None or plan is None:
            name = f"job {self.slurm.job_id}" if self.slurm is not None else str(self.run_dir)
            raise LaunchError(f"{name}: no run folder of mimo-launch is known for it; give the folder in its place")
        return lines_of(self.run_dir, plan, wanted, self.is_over if follow else None)

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
        state = "" if job.slurm is not None else f": {'over' if job.is_over() else 'running'}"
        lines += ["", f"run folder: {job.run_dir}{state}"]
    if (plan := job.plan) is not None:
        rows = [
            [f"{ranks.start}-{ranks.stop - 1}" if len(ranks) > 1 else str(ranks.start), node, pool, host, modules]
            for node, pool, host, ranks, modules in _node_rows(plan, job.hosts)
        ]
        lines += ["", tabulate(rows, headers=["ranks", "node", "pool", "host", "modules"], disable_numparse=True)]
    return "\n".join(lines).strip("\n")


def as_json(job: Job) -> str:
    """The same for programs."""
    plan = job.plan
    slurm = job.slurm
    value: dict[str, Any] = {
        "job_id": slurm.job_id if slurm is not None else None,
        "state": slurm.state if slurm is not None else ("OVER" if job.is_over() else "RUNNING"),
        "components": [asdict(part) for part in slurm.components] if slurm is not None else [],
        "run_dir": str(job.run_dir) if job.run_dir is not None else None,
        "nodes": [
            {"name": node, "pool": pool, "host": host or None, "ranks": list(ranks), "modules": modules.split(", ")}
            for node, pool, host, ranks, modules in (_node_rows(plan, job.hosts) if plan is not None else ())
        ],
    }
    return json.dumps(value)


def _by_id(job_id: str) -> Job:
    found = slurm_jobs.find(job_id)
    if found is None:
        raise LaunchError(f"job {job_id}: SLURM does not know it (any more); give its run folder in its place")
    submission = Submission(Path(found.folder))
    return Job(found, submission.run_dir if submission.plan_file.exists() else None)


def _by_folder(folder: Path) -> Job:
    if not folder.is_dir():
        raise LaunchError(f"{folder}: neither a job's id nor a run folder")
    submission = Submission.latest(folder)
    record = submission.recorded() if submission is not None else None
    if record is None and not (folder / "run_id").exists():
        raise LaunchError(f"{folder}: not a run folder of mimo-launch")
    return Job(slurm_jobs.find(record.job_id) if record is not None else None, folder.absolute())


def _component_row(part: slurm_jobs.JobComponent) -> list[str]:
    return [
        part.name,
        part.state,
        part.nodes or "-",
        "-" if part.exit_code is None else str(part.exit_code),
        part.reason or "-",
    ]


def _node_rows(plan: LaunchPlan, hosts: dict[str, str]) -> Iterable[tuple[str, str, str, range, str]]:
    for node in plan.nodes:
        modules = [name for name, grid in plan.topology.grids.items() if _meet(grid.ranks, node.ranks)]
        yield node.name, node.pool, hosts.get(node.name, ""), node.ranks, ", ".join(modules)


def _meet(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


def _times(restarts: int) -> str:
    return "" if not restarts else f", started again {restarts} time{'s' if restarts > 1 else ''}"


def _is_locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
