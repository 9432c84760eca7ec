"""Collects the stacks and the pending collectives of a node's ranks."""

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
from launcher.host.reaper import catches, state_of
from mimo_role.host.node_dir import stacks_file, trace_request_pipe, traces_file
from mimo_role.monitoring.diagnostics import STACKS_SIGNAL, read_traces
from mimo_role.monitoring.flight_recorder import GroupTrace

_TIMEOUT_S = 3.0
_INTERVAL_S = 0.02
_WRITE_S = 0.1
"""How long a rank may take to write its main thread's stack, from the first character on."""
_STOPPED = ("T", "t")


@dataclass(frozen=True, kw_only=True)
class RankSnapshot:
    """The state of one rank at one moment."""

    rank: int
    pid: int
    host: str
    state: str
    """The kernel's letter: R running, S sleeping, D waiting for a device, T stopped; empty if it has exited."""
    step: int | None
    joining_s: float | None = None
    """For how long it has been joining; `None` if it is not."""
    frames: tuple[Frame, ...] = ()
    """The stack of its main thread, outermost first; empty if it does not respond."""
    traces: tuple[GroupTrace, ...] | None = None
    """Its collectives in each process group; `None` if it does not respond."""

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


def probe_ranks(
    node_dir: Path, pids: Mapping[int, int], steps: Mapping[int, int | None], keep: Callable[[int], Path]
) -> list[RankSnapshot]:
    """Take a snapshot of each rank of this node, within a few seconds.

    Args:
        node_dir: the node directory.
        pids: the process of each rank.
        steps: the last step of each rank.
        keep: the file in which the stacks of a rank are kept.
    """
    # Stacks first: while the thread that writes the collectives runs, its frames in a dump can be torn.
    for rank, pid in pids.items():
        with suppress(OSError):
            _request_stacks(node_dir, rank, pid)
    _wait_until(lambda rank: _main_thread_of(_stacks(node_dir, rank)) != "", pids)
    time.sleep(_WRITE_S)
    for rank in pids:
        with suppress(OSError):
            _request_traces(node_dir, rank)
    _wait_until(lambda rank: traces_file(node_dir, rank).exists(), pids)
    return [_snapshot(node_dir, rank, pid, steps.get(rank), keep) for rank, pid in pids.items()]


def _request_stacks(node_dir: Path, rank: int, pid: int) -> None:
    os.truncate(stacks_file(node_dir, rank), 0)
    # The signal would end a process that has no handler for it.
    if catches(pid, STACKS_SIGNAL):
        os.kill(pid, STACKS_SIGNAL)


def _request_traces(node_dir: Path, rank: int) -> None:
    traces_file(node_dir, rank).unlink(missing_ok=True)
    # Fails where no thread of the rank reads the pipe.
    os.close(os.open(trace_request_pipe(node_dir, rank), os.O_WRONLY | os.O_NONBLOCK))


def _wait_until(has_responded: Callable[[int], bool], pids: Mapping[int, int]) -> None:
    """Wait until all ranks have responded that are not stopped, or until the timeout."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline:
        if all(has_responded(rank) or state_of(pid) in _STOPPED for rank, pid in pids.items()):
            return
        time.sleep(_INTERVAL_S)


def _snapshot(node_dir: Path, rank: int, pid: int, step: int | None, keep: Callable[[int], Path]) -> RankSnapshot:
    stacks = _stacks(node_dir, rank)
    traces = read_traces(node_dir, rank)
    if stacks:
        with suppress(OSError):
            keep(rank).write_text(stacks, encoding="utf-8")
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
    """The main thread's part of all stacks. It comes last, since threads are written newest first; empty until then."""
    *_, last = re.split(r"^(?:Current thread|Thread) 0x.*$", stacks, flags=re.MULTILINE)
    return "" if "in _bootstrap_inner" in last else last


def _stacks(node_dir: Path, rank: int) -> str:
    try:
        return stacks_file(node_dir, rank).read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return ""
