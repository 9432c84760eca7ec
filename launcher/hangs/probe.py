"""What the ranks of a node are at, asked of those that no longer make progress."""

import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.failures.crash import Frame
from launcher.failures.output_tail import dumped_frames
from launcher.host import reaper
from launcher.host.resources import state_of
from mimo_role.monitoring.diagnostics import STACKS_SIGNAL, question_pipe, read_traces, stacks_file, traces_file
from mimo_role.monitoring.flight_recorder import GroupTrace

_PATIENCE_S = 3.0
_LOOK_S = 0.02
_MOMENT_S = 0.1
"""How long a rank may take to write its main thread's stack, from its first character on."""
_STOPPED = ("T", "t")


@dataclass(frozen=True, kw_only=True)
class RankSnapshot:
    """One rank as it was found."""

    rank: int
    pid: int
    host: str
    state: str
    """The kernel's letter: R runs, S waits, D waits for a device, T is stopped; empty if it has ended."""
    step: int | None
    frames: tuple[Frame, ...] = ()
    """Where its main thread is, outermost first; none if it does not answer."""
    traces: tuple[GroupTrace, ...] | None = None
    """What it has done in which process groups; `None` if it does not answer."""

    @property
    def is_stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it."""
        return self.state in _STOPPED

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "RankSnapshot":
        """The inverse of `as_dict`, after JSON too."""
        traces = value["traces"]
        return cls(
            **dict(value)
            | {
                "frames": tuple(Frame(**frame) for frame in value["frames"]),
                "traces": None if traces is None else tuple(GroupTrace.from_dict(trace) for trace in traces),
            }
        )


def probe_ranks(folder: Path, pids: Mapping[int, int], steps: Mapping[int, int | None], keep: Path) -> list[RankSnapshot]:
    """Ask the ranks of this node, for a few seconds at most.

    Args:
        folder: the node's.
        pids: the ranks' processes.
        steps: the step that each has come to.
        keep: where all stacks go, a file per rank.
    """
    # First the stacks: one that is written while the thread that tells the collectives runs shows that thread's frames torn.
    for rank, pid in pids.items():
        with suppress(OSError):
            _ask_for_stacks(folder, rank, pid)
    _wait_until(lambda rank: _main_thread_of(_stacks(folder, rank)) != "", pids)
    time.sleep(_MOMENT_S)
    for rank in pids:
        with suppress(OSError):
            _ask_for_traces(folder, rank)
    _wait_until(lambda rank: traces_file(folder, rank).exists(), pids)
    return [_sighting(folder, rank, pid, steps.get(rank), keep) for rank, pid in pids.items()]


def _ask_for_stacks(folder: Path, rank: int, pid: int) -> None:
    os.truncate(stacks_file(folder, rank), 0)
    # For a process that does not listen the signal would be deadly.
    if reaper.does_with(pid, STACKS_SIGNAL, "SigCgt"):
        os.kill(pid, STACKS_SIGNAL)


def _ask_for_traces(folder: Path, rank: int) -> None:
    traces_file(folder, rank).unlink(missing_ok=True)
    # Fails where nobody reads: then nobody would answer.
    os.close(os.open(question_pipe(folder, rank), os.O_WRONLY | os.O_NONBLOCK))


def _wait_until(has_answered: Callable[[int], bool], pids: Mapping[int, int]) -> None:
    """For a limited time; ranks that are stopped are not waited for."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if all(has_answered(rank) or state_of(pid) in _STOPPED for rank, pid in pids.items()):
            return
        time.sleep(_LOOK_S)


def _sighting(folder: Path, rank: int, pid: int, step: int | None, keep: Path) -> RankSnapshot:
    stacks = _stacks(folder, rank)
    traces = read_traces(folder, rank)
    if stacks:
        with suppress(OSError):
            (keep / f"rank{rank}.stacks.txt").write_text(stacks, encoding="utf-8")
    return RankSnapshot(
        rank=rank,
        pid=pid,
        host=socket.gethostname(),
        state=state_of(pid),
        step=step,
        frames=tuple(reversed(dumped_frames(_main_thread_of(stacks)))),
        traces=tuple(traces) if traces is not None else None,
    )


def _main_thread_of(stacks: str) -> str:
    """Its part of all stacks; empty as long as it has not been written: threads come newest first, so the main one last."""
    *_, last = re.split(r"^(?:Current thread|Thread) 0x.*$", stacks, flags=re.MULTILINE)
    return "" if "in _bootstrap_inner" in last else last


def _stacks(folder: Path, rank: int) -> str:
    try:
        return stacks_file(folder, rank).read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""
