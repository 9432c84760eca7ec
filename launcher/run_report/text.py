"""The report of a run for a terminal, and for programs."""

import json
from collections.abc import Iterator
from typing import Any

from launcher.formatting import counted, printable
from launcher.run_report.rehearsal_text import lines_of_rehearsal
from launcher.run_report.run_record import RunRecord
from launcher.run_report.ticks import duration_text, number_text
from launcher.stragglers import text as straggler_text


def as_text(record: RunRecord) -> str:
    """How the run ended and why, its restarts, its steps so far, and its stragglers; of a rehearsal its kinds and failures."""
    title = f"{record.plan.name}: {record.state}"
    if record.rehearsal is not None:
        parts = [title, *lines_of_rehearsal(record.rehearsal)]
    else:
        parts = [title, *_restarts(record), *_message(record), *_steps(record), *_stragglers(record)]
    return "\n".join(printable(line) for part in parts for line in part.split("\n"))


def as_json(record: RunRecord) -> str:
    """All of report.json or rehearsal.json, `null` before the end, with the run directory and the state in words."""
    value: dict[str, Any] = {"run_dir": record.path, "state": record.state, "report": record.report}
    if record.rehearsal is not None:
        value["rehearsal"] = record.rehearsal.as_dict() | {"result": record.rehearsal.whole}
    return json.dumps(value)


def _restarts(record: RunRecord) -> Iterator[str]:
    restarts = (record.report or {}).get("restarts")
    for number, reason in enumerate(restarts if isinstance(restarts, list) else [], 1):
        yield f"restart {number}: {reason}"


def _message(record: RunRecord) -> Iterator[str]:
    message = (record.report or {}).get("message")
    if isinstance(message, str) and "\n" in message:  # its first line is in the state
        yield f"\n{message}"


def _steps(record: RunRecord) -> Iterator[str]:
    if not record.steps:
        return
    seconds = sorted(each.seconds for each in record.steps if each.seconds is not None)
    last = record.steps[-1]
    scalars = "".join(f", {name} {number_text(value)}" for name, value in last.scalars.items())
    yield ""
    median = f", {duration_text(seconds[len(seconds) // 2])} each (median)" if seconds else ""
    yield f"{counted(len(record.steps), 'step')}{median}; step {last.step}{scalars}"


def _stragglers(record: RunRecord) -> Iterator[str]:
    for each in record.stragglers:
        yield f"straggler: {straggler_text.describe(each)}"
    if record.stragglers_left_out:
        yield f"{counted(record.stragglers_left_out, 'further straggler')} cost less and did not last"
