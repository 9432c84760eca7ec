"""How the run stands that a run folder is of: its lock, its report, and what else it has left there."""

import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunReport:
    """How mimo-launch says that a run ended."""

    outcome: str
    """In a word, such as `done`, `failed` or `ended` (from outside)."""
    exit_code: int
    headline: str | None
    """What failed; `None` after success."""
    attempts: int
    """How often its ranks were started."""


def read_report(folder: Path) -> RunReport | None:
    """The report of a run; `None` as long as there is none, or none that can be read."""
    try:
        value: Any = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        outcome, headline = value["outcome"], value["headline"]
        return RunReport(str(outcome), int(value["exit_code"]), headline and str(headline), int(value["attempts"]))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def describe(folder: Path) -> str:
    """How a run on this machine stands, and the next line its exit code, starts and host, as far as they are known."""
    report = read_report(folder)
    host, starts = host_of(folder), report.attempts if report is not None else _starts(folder)
    more = [f"exit code {report.exit_code}"] if report is not None else []
    more += [f"started {'once' if starts == 1 else f'{starts} times'}"] if starts else []
    more += [f"on {host}"] if host is not None else []
    return _state(folder, report) + (f"\n  {', '.join(more)}" if more else "")


def _state(folder: Path, report: RunReport | None) -> str:
    if report is not None:
        if report.headline is None:
            return f"over, {report.outcome}"
        # Where it was ended from outside, that says how.
        return f"over, {report.headline}" if report.outcome == "ended" else f"over, {report.outcome}: {report.headline}"
    if is_locked(folder):
        return "running"
    if not (folder / "run_id").exists():
        return "over"
    return "over, without a report: mimo-launch was killed, or could not write"


def _starts(folder: Path) -> int:
    return sum(1 for _ in folder.glob("logs/attempt*"))


def host_of(folder: Path) -> str | None:
    """The machine of node 0's mimo-launch, by what it wrote into the lock."""
    try:
        holder = (folder / ".lock").read_text(encoding="utf-8")
        run_id = (folder / "run_id").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.fullmatch(r"process (\d+) on (.+?)(, SLURM job \S+)?", holder)
    # Where a file system has no locks, that of an earlier run may lie there.
    return found[2] if found is not None and run_id.endswith(f"-{found[1]}") else None


def is_locked(folder: Path) -> bool:
    """Whether a run is going on in a folder."""
    try:
        file = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
