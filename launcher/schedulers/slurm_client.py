"""What SLURM says of a job: squeue first, sacct where there is accounting."""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import LaunchError

OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
"""States in which a job is over: squeue(1), "JOB STATE CODES"."""

_FLAGS = {"COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT"}
_FLAGS |= {"STAGE_OUT", "STOPPED", "RESIZING", "LAUNCH_FAILED", "UPDATE_DB", "EXPEDITING", "POWER_UP_NODE", "RECONFIG_FAIL"}
"""What newer releases list beside the state."""

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True)
class JobComponent:
    """A plain job, or one component of a heterogeneous one."""

    name: str
    """`12`, or `12+1`."""
    state: str
    reason: str
    nodes: str
    """SLURM's list of its nodes; empty while it waits."""
    exit_code: int | None
    """The batch script's exit code, once it is over; `None` if it was ended by a signal, or has none."""
    restarts: int


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job as SLURM sees it."""

    job_id: str
    name: str
    folder: str
    """The folder in which sbatch was called."""
    components: tuple[JobComponent, ...]

    @property
    def state(self) -> str:
        """The first component's, which runs the batch script; but an unfinished one's where they differ."""
        unfinished = [part.state for part in self.components if part.state not in OVER]
        return unfinished[0] if unfinished else self.components[0].state

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in OVER


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run one of SLURM's commands.

    Raises:
        LaunchError: it is not installed here.
    """
    try:
        return subprocess.run(list(command), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]}: not found on PATH; is this a machine from which SLURM is used?") from None


def said(done: "subprocess.CompletedProcess[str]") -> str:
    """What a command that failed said of it."""
    return done.stderr.strip() or f"exit code {done.returncode}"


def find(job_id: str, runner: Runner = run) -> SlurmJob | None:
    """The job, or `None` if neither squeue nor sacct knows it.

    Raises:
        LaunchError: SLURM's commands are not here, or do not answer.
    """
    return _from_squeue(job_id, runner) or _from_sacct(job_id, runner)


def mine(runner: Runner = run) -> dict[str, str]:
    """The state of each of the user's jobs that squeue knows, by id; of a heterogeneous one, its first component's.

    Raises:
        LaunchError: SLURM's commands are not here, or do not answer.
    """
    done = runner(["squeue", "--me", "--noheader", "--states=all", "--sort=i", "--format=%i|%T"])
    if done.returncode != 0:
        raise LaunchError(f"squeue failed: {said(done)}")
    found: dict[str, str] = {}
    for name, state in (line.split("|") for line in done.stdout.split()):
        found.setdefault(name.partition("+")[0], state)
    return found


def is_over(job_id: str, runner: Runner = run) -> bool:
    """Whether the job has ended, or SLURM has forgotten it. A controller that does not answer for a while is waited for."""
    done = runner(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"])
    if done.returncode != 0:
        return "Invalid job id" in done.stderr
    return set(done.stdout.split()) <= OVER


def cancel(job_id: str, runner: Runner = run) -> None:
    """End a job.

    Raises:
        LaunchError: scancel refuses.
    """
    done = runner(["scancel", job_id])
    if done.returncode != 0:
        raise LaunchError(f"scancel {job_id} failed: {said(done)}")


def state_of(value: Any) -> str:
    """A job's state in SLURM's JSON: text (to 22.05), a list of a state and flags (from 23.02), or either below `current`."""
    if isinstance(value, Mapping):
        value = value.get("current", "")
    states = [str(state).split()[0] for state in (value if isinstance(value, list) else [value]) if state]
    if "REQUEUED" in states or "REQUEUE_HOLD" in states:
        return "PENDING"
    return next((state for state in states if state not in _FLAGS), states[0] if states else "UNKNOWN")


def _from_squeue(job_id: str, runner: Runner) -> SlurmJob | None:
    # The filter is for newer releases: that of 22.05 prints all jobs whatever it is asked for.
    done = runner(["squeue", "--json", f"--jobs={job_id}"])
    if done.returncode != 0:
        if "Invalid job id" in done.stderr:
            return None
        raise LaunchError(f"squeue failed: {said(done)}")
    jobs = [job for job in _jobs(done.stdout, "squeue") if str(_plain(job.get("het_job_id")) or job["job_id"]) == job_id]
    if not jobs:
        return None
    parts = []
    for job in sorted(jobs, key=lambda job: int(job["job_id"])):
        het = _plain(job.get("het_job_id"))
        state = state_of(job["job_state"])
        parts.append(
            JobComponent(
                name=f"{het}+{_plain(job.get('het_job_offset')) or 0}" if het else str(job["job_id"]),
                state=state,
                reason=str(job.get("state_reason", "")).replace("None", ""),
                nodes=str(job.get("nodes") or ""),
                exit_code=_exit_code(job.get("exit_code")) if state in OVER else None,
                restarts=_plain(job.get("restart_cnt")) or 0,
            )
        )
    folder = str(jobs[0].get("current_working_directory") or "")
    return SlurmJob(job_id=job_id, name=str(jobs[0].get("name")), folder=folder, components=tuple(parts))


def _from_sacct(job_id: str, runner: Runner) -> SlurmJob | None:
    try:
        done = runner(["sacct", "--json", f"--jobs={job_id}"])
    except LaunchError:
        return None
    if done.returncode != 0:  # most often: there is no accounting
        return None
    latest: dict[int, Mapping[str, Any]] = {int(job["job_id"]): job for job in _jobs(done.stdout, "sacct")}
    if not latest:
        return None
    codes, folder = _told_in_text(job_id, runner)
    parts = []
    for number, job in sorted(latest.items()):
        het = job.get("het") or {}
        leader = _plain(het.get("job_id"))
        name = f"{leader}+{_plain(het.get('job_offset')) or 0}" if leader else str(number)
        nodes = str(job.get("nodes") or "")
        parts.append(
            JobComponent(
                name=name,
                state=state_of(job["state"]),
                reason="",
                nodes="" if nodes == "None assigned" else nodes,
                exit_code=codes.get(name),
                restarts=_plain(job.get("restart_cnt")) or 0,
            )
        )
    return SlurmJob(job_id=job_id, name=str(latest[min(latest)].get("name")), folder=folder, components=tuple(parts))


def _told_in_text(job_id: str, runner: Runner) -> tuple[dict[str, int | None], str]:
    """Exit codes by component, and the folder. sacct's JSON calls every code 0 and often has no folder (seen with 22.05)."""
    form = "--format=jobid,exitcode,workdir"
    done = runner(["sacct", "--parsable2", "--noheader", "--allocations", form, f"--jobs={job_id}"])
    rows = [row for line in done.stdout.splitlines() if len(row := line.split("|", 2)) == 3]
    codes = {name: int(code.split(":")[0]) if code.endswith(":0") else None for name, code, _ in rows}
    return codes, next((folder for _, _, folder in rows if folder), "")


def _jobs(text: str, command: str) -> list[Mapping[str, Any]]:
    try:
        jobs: list[Mapping[str, Any]] = json.loads(text)["jobs"]
    except (ValueError, KeyError, TypeError):
        raise LaunchError(f"{command} --json: its answer is not JSON with jobs; Slurm 21.08 and newer give that") from None
    return jobs


def _plain(value: Any) -> Any:
    """A number in SLURM's JSON: as it is (to 22.05), or with whether it is set (from 23.02)."""
    if isinstance(value, Mapping):
        return value.get("number") if value.get("set") else None
    return value


def _exit_code(value: Any) -> int | None:
    """An exit code in squeue's JSON: a wait status (to 22.05), or a mapping (from 23.02)."""
    if isinstance(value, Mapping):
        return None if _plain((value.get("signal") or {}).get("id")) else _plain(value.get("return_code"))
    return None if not isinstance(value, int) or value & 0x7F else value >> 8
