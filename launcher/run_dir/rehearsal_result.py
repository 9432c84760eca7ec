"""The result of a rehearsal in its run directory, and whether it is going on."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked


@dataclass(frozen=True, kw_only=True)
class RehearsedKind:
    """One kind of rank and how its process has ended."""

    name: str
    rank_count: int
    rehearsed_rank: int
    exit_code: int
    ending: str
    """`exit code 0`, or the exception in one line."""
    seconds: float
    steps: int | None
    """`None` of a process that was killed; `peak_bytes` too."""
    peak_bytes: int | None

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "RehearsedKind":
        """From an entry of `kinds` in rehearsal.json.

        Raises:
            LookupError, TypeError, ValueError: it is damaged, or of another version.
        """
        steps, peak = found.get("steps"), found.get("peak_bytes")
        return cls(
            name=str(found["kind"]),
            rank_count=int(found["rank_count"]),
            rehearsed_rank=int(found["rehearsed_rank"]),
            exit_code=int(found["exit_code"]),
            ending=str(found["ending"]),
            seconds=float(found["seconds"]),
            steps=None if steps is None else int(steps),
            peak_bytes=None if peak is None else int(peak),
        )


@dataclass(frozen=True, kw_only=True)
class RehearsalOutcome:
    """What rehearsal.json has about all kinds together."""

    exit_code: int
    """That the real job would have."""
    summary: str
    """`4 ranks are 4 kinds, rehearsed in 7.8 s; none failed`."""
    kinds: tuple[RehearsedKind, ...]
    failures: tuple[str, ...]
    """Messages of several lines: kinds that failed, groups whose members do not call the same, GPUs that are too small."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "RehearsalOutcome":
        """From the content of rehearsal.json.

        Raises:
            LookupError, TypeError, ValueError: it is damaged, or of another version.
        """
        failures = (*found["failures"], *found["call_failures"], *found["memory_failures"])
        return cls(
            exit_code=int(found["exit_code"]),
            summary=str(found["summary"]),
            kinds=tuple(map(RehearsedKind.of, found["kinds"])),
            failures=tuple(map(str, failures)),
        )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A rehearsal as its run directory has it."""

    file: str
    """Path of rehearsal.json."""
    is_going_on: bool
    outcome: RehearsalOutcome | None
    """`None` before the end, of one that was interrupted, and of a file that cannot be read."""
    whole: Mapping[str, Any] | None
    """All that rehearsal.json has; `None` where `outcome` is."""

    @property
    def state(self) -> str:
        """`going on`, `done`, or `interrupted`."""
        return "going on" if self.is_going_on else "interrupted" if self.outcome is None else "done"

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without what only `whole` has."""
        return {"state": self.state, "file": self.file, "result": None if self.outcome is None else asdict(self.outcome)}

    def describe(self) -> str:
        """The state in words, with the summary of one that is done."""
        if self.is_going_on:
            return "rehearsal going on"
        if self.outcome is None:
            return "rehearsal without a result: it was interrupted, or could not write; rehearse again"
        return f"rehearsal done: {self.outcome.summary}"


def is_rehearsal(files: RunDirLayout) -> bool:
    """Whether a run directory is that of a rehearsal."""
    return files.rehearsal_file.exists() or files.rehearsed_files_dir.exists()


def read_rehearsal(files: RunDirLayout) -> Rehearsal | None:
    """The rehearsal in a run directory; `None` if the directory is that of a real run."""
    if not is_rehearsal(files):
        return None
    if is_locked(files):  # before the file is read: a file that is there when the lock is gone is of this rehearsal
        return Rehearsal(file=str(files.rehearsal_file), is_going_on=True, outcome=None, whole=None)
    try:
        whole = json.loads(files.rehearsal_file.read_text(encoding="utf-8"))
        outcome = RehearsalOutcome.of(whole)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        whole, outcome = None, None
    return Rehearsal(file=str(files.rehearsal_file), is_going_on=False, outcome=outcome, whole=whole)
