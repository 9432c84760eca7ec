"""The state of a SLURM job: from squeue, else from sacct where there is accounting."""

import json
import re
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
"""States in which a job has ended: squeue(1), "JOB STATE CODES"."""

_FLAGS = {"COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT"}
_FLAGS |= {"STAGE_OUT", "STOPPED", "RESIZING", "LAUNCH_FAILED", "UPDATE_DB", "EXPEDITING", "POWER_UP_NODE", "RECONFIG_FAIL"}
"""Flags that newer releases list next to the state."""

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True)
class JobComponent:
    """A plain job, or one component of a heterogeneous one."""

    name: str
    """`12`, or `12+1`."""
    state: str
    reason: str
    nodes: str
    """SLURM's list of its nodes; empty while it is pending."""
    exit_code: int | None
    """The batch script's exit code, once it has ended; `None` if a signal ended it, or it has none."""
    restarts: int


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """A job as SLURM reports it."""

    job_id: str
    name: str
    cwd: str
    """The directory in which sbatch was called."""
    components: tuple[JobComponent, ...]

    @property
    def state(self) -> str:
        """The state of an unfinished component, if there is one; else that of the first, which runs the batch script."""
        unfinished = [part.state for part in self.components if part.state not in OVER]
        return unfinished[0] if unfinished else self.components[0].state

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.state in OVER


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Run one of SLURM's commands.

    Raises:
        LaunchError: it is not installed on this machine.
    """
    try:
        return subprocess.run(list(command), capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]}: not found on PATH; run this on a machine with SLURM's commands") from None


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    """The error messages of a command that failed, on one line; a fatal one alone."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    fatal = [line for line in lines if re.match(r"\S+: fatal: ", line)]
    shown = [re.sub(r"^\S+: (error|fatal): ", "", line) for line in fatal or lines]
    return "; ".join(shown) or f"exit code {done.returncode}"


def find(job_id: str, runner: Runner = run) -> SlurmJob | None:
    """The job, or `None` if neither squeue nor sacct finds it.

    Raises:
        LaunchError: SLURM's commands are not installed, or fail.
    """
    try:
        return _from_squeue(job_id, runner) or _from_sacct(job_id, runner)
    except LaunchError as error:
        raise LaunchError(f"job {job_id}: {error}, or give the job's run directory instead") from None


def is_over(job_id: str, runner: Runner = run) -> bool:
    """Whether the job has ended, or is no longer known to SLURM; false while the controller does not respond."""
    done = runner(["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job_id}"])
    if done.returncode != 0:
        return "Invalid job id" in done.stderr
    return set(done.stdout.split()) <= OVER


def cancel(job_id: str, runner: Runner = run) -> None:
    """Cancel a job.

    Raises:
        LaunchError: scancel failed.
    """
    done = runner(["scancel", job_id])
    if done.returncode != 0:
        raise LaunchError(f"scancel {job_id} failed: {error_of(done)}")


def state_of(value: Any) -> str:
    """A job's state in SLURM's JSON: text (to 22.05), a list of a state and flags (from 23.02), or either under `current`."""
    if isinstance(value, Mapping):
        value = value.get("current", "")
    states = [str(state).split()[0] for state in (value if isinstance(value, list) else [value]) if state]
    if "REQUEUED" in states or "REQUEUE_HOLD" in states:
        return "PENDING"
    return next((state for state in states if state not in _FLAGS), states[0] if states else "UNKNOWN")


def _from_squeue(job_id: str, runner: Runner) -> SlurmJob | None:
    # --jobs filters in newer releases only: 22.05 prints all jobs with --json.
    done = runner(["squeue", "--json", f"--jobs={job_id}"])
    if done.returncode != 0:
        if "Invalid job id" in done.stderr:
            return None
        raise LaunchError(f"squeue failed: {error_of(done)}; run this on a machine of the cluster")
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
    cwd = str(jobs[0].get("current_working_directory") or "")
    return SlurmJob(job_id=job_id, name=str(jobs[0].get("name")), cwd=cwd, components=tuple(parts))


def _from_sacct(job_id: str, runner: Runner) -> SlurmJob | None:
    try:
        done = runner(["sacct", "--json", f"--jobs={job_id}"])
    except LaunchError:
        return None
    if done.returncode != 0:  # usually because there is no accounting
        return None
    latest: dict[int, Mapping[str, Any]] = {int(job["job_id"]): job for job in _jobs(done.stdout, "sacct")}
    if not latest:
        return None
    codes, cwd = _codes_and_cwd(job_id, runner)
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
    return SlurmJob(job_id=job_id, name=str(latest[min(latest)].get("name")), cwd=cwd, components=tuple(parts))


def _codes_and_cwd(job_id: str, runner: Runner) -> tuple[dict[str, int | None], str]:
    """Exit codes by component, and the directory, as text: sacct's JSON (22.05) has only code 0 and often no directory."""
    form = "--format=jobid,exitcode,workdir"
    done = runner(["sacct", "--parsable2", "--noheader", "--allocations", form, f"--jobs={job_id}"])
    rows = [row for line in done.stdout.splitlines() if len(row := line.split("|", 2)) == 3]
    codes = {name: int(code.split(":")[0]) if code.endswith(":0") else None for name, code, _ in rows}
    return codes, next((cwd for _, _, cwd in rows if cwd), "")


def _jobs(text: str, command: str) -> list[Mapping[str, Any]]:
    try:
        jobs: list[Mapping[str, Any]] = json.loads(text)["jobs"]
    except (ValueError, KeyError, TypeError):
        raise LaunchError(f"{command} --json: the output is not JSON with jobs; use Slurm 21.08 or newer") from None
    return jobs


def _plain(value: Any) -> Any:
    """A number in SLURM's JSON: a plain number (to 22.05), or a mapping with `set` and `number` (from 23.02)."""
    if isinstance(value, Mapping):
        return value.get("number") if value.get("set") else None
    return value


def _exit_code(value: Any) -> int | None:
    """An exit code in squeue's JSON: a wait status (to 22.05), or a mapping (from 23.02)."""
    if isinstance(value, Mapping):
        return None if _plain((value.get("signal") or {}).get("id")) else _plain(value.get("return_code"))
    return None if not isinstance(value, int) or value & 0x7F else value >> 8
