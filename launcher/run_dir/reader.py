"""The state of the run in a run directory, from its lock, its report and its other files."""

import json
import re
from typing import Any

from launcher.formatting import counted
from launcher.outcome import Outcome
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked
from launcher.run_dir.rehearsal_result import Rehearsal, read_rehearsal


def read_report(run_dir: RunDirLayout) -> Outcome | None:
    """The report of a run; `None` as long as there is none, or none that can be read."""
    try:
        return Outcome.from_dict(read_whole_report(run_dir) or {})
    except (ValueError, LookupError, TypeError):
        return None


def read_whole_report(run_dir: RunDirLayout) -> dict[str, Any] | None:
    """All that report.json has, unchecked; `None` as long as there is none, or none that can be read."""
    try:
        value = json.loads(run_dir.report_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def describe(run_dir: RunDirLayout) -> str:
    """The state of a run or a rehearsal; on the next line its exit code, attempts and host, as far as they are known."""
    if (rehearsal := read_rehearsal(run_dir)) is not None:
        return _describe_rehearsal(run_dir, rehearsal)
    report = read_report(run_dir)
    host, attempts = host_of(run_dir), report.attempts if report is not None else len(run_dir.attempts())
    more = [f"exit code {report.exit_code}"] if report is not None else []
    more += [counted(attempts, "attempt")] if attempts else []
    more += [f"on {host}"] if host is not None else []
    return _state(run_dir, report) + (f"\n  {', '.join(more)}" if more else "")


def _describe_rehearsal(run_dir: RunDirLayout, rehearsal: Rehearsal) -> str:
    host = host_of(run_dir)
    more = [f"exit code {rehearsal.outcome.exit_code}"] if rehearsal.outcome is not None else []
    more += [f"on {host}"] if host is not None else []
    return rehearsal.describe() + (f"\n  {', '.join(more)}" if more else "")


def _state(run_dir: RunDirLayout, report: Outcome | None) -> str:
    if report is not None:
        if report.headline is None:
            return f"over, {report.kind}"
        # The headline of a run that was ended from outside includes the outcome.
        return f"over, {report.headline}" if report.kind == "ended" else f"over, {report.kind}: {report.headline}"
    if is_locked(run_dir):
        return "running"
    if not run_dir.run_id_file.exists():
        return "over"
    return "over, without a report: mimo-launch was killed, or could not write"


def host_of(run_dir: RunDirLayout) -> str | None:
    """The host of node 0's mimo-launch, which writes it into the lock file."""
    try:
        holder = run_dir.lock_file.read_text(encoding="utf-8")
        run_id = run_dir.run_id_file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.fullmatch(r"process (\d+) on (.+?)(, SLURM job \S+)?", holder)
    # On a file system without locks, the file may be that of an earlier run.
    return found[2] if found is not None and run_id.endswith(f"-{found[1]}") else None
