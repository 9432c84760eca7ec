"""Reads the ranks' output from a run directory: lines of selected ranks, to the end or as they are written."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from launcher.errors import LaunchError
from launcher.formatting import parse_ranges
from launcher.logs.file_tail import FileTail
from launcher.logs.pace import Pace
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.layout import RunDirLayout
from launcher.terminal.text import text_of
from mimo_role import Topology

STREAMS = ("stdout", "stderr")
_INTERVAL_S = 0.2
_STATE_INTERVAL_S = 3.0


@dataclass(frozen=True, kw_only=True)
class LogFilter:
    """Which ranks' output is wanted; criteria that are left out match all."""

    module: str | None = None
    stage: int | None = None
    """The position along pp, from 0: in `module`, or in any module."""
    ranks: tuple[int, ...] = ()

    def ranks_of(self, topology: Topology) -> list[int]:
        """The ranks that match.

        Raises:
            LaunchError: there is no such module, stage or rank, or none that matches all criteria.
        """
        if self.module is not None and self.module not in topology.grids:
            raise LaunchError(f"--module {self.module}: no such module; there are {', '.join(topology.grids)}")
        if outside := [rank for rank in self.ranks if not 0 <= rank < topology.world_size]:
            raise LaunchError(f"--rank {outside[0]}: no such rank; there are ranks 0-{topology.world_size - 1}")
        found = [rank for rank in self.ranks or range(topology.world_size) if self._matches(topology, rank)]
        if not found:
            criteria = {"--module": self.module, "--stage": self.stage, "--rank": ",".join(map(str, self.ranks)) or None}
            given = " ".join(f"{key} {value}" for key, value in criteria.items() if value is not None)
            raise LaunchError(f"no rank matches {given}")
        return found

    def _matches(self, topology: Topology, rank: int) -> bool:
        places = topology.coords_of(rank)
        of_module = [coords for name, coords in places.items() if self.module in (None, name)]
        return any(self.stage in (None, coords["pp"]) for coords in of_module)


def ranks_from(text: str | None) -> tuple[int, ...]:
    """Ranks from the command line: `7`, `0,3-5`; none for `None`.

    Raises:
        LaunchError: not a list of ranks.
    """
    try:
        return parse_ranges(text) if text is not None else ()
    except ValueError:
        raise LaunchError(f"--rank {text}: not a list of ranks; write 7, or 0,3-5") from None


def lines_of(
    locate: Callable[[], RunDirLayout | None], plan: LaunchPlan, wanted: LogFilter, is_over: Callable[[], bool] | None = None
) -> Iterator[str]:
    """The lines of the last attempt, each with its rank's role: rank by rank, or with `is_over` as they are written.

    Args:
        locate: returns the directory with the run's logs; `None` as long as the run has not begun.
        plan: the plan of the run.
        wanted: which ranks.
        is_over: polled; the lines end once it is true. Attempts that begin later are followed too.

    Raises:
        LaunchError: no rank matches `wanted`.
    """
    labels = {rank: f"[{plan.topology.label_of(rank)} r{rank}]" for rank in wanted.ranks_of(plan.topology)}
    return _follow(locate, labels, is_over) if is_over is not None else _read(locate, labels)


def _read(locate: Callable[[], RunDirLayout | None], labels: Mapping[int, str]) -> Iterator[str]:
    if (attempt := _latest(locate())) is not None:
        yield from _lines(_tails(attempt, labels), last=True)


def _follow(locate: Callable[[], RunDirLayout | None], labels: Mapping[int, str], is_over: Callable[[], bool]) -> Iterator[str]:
    followed, tails, polled = None, list[_Tail](), 0.0
    while True:
        over = False
        if time.monotonic() - polled > _STATE_INTERVAL_S:
            over, polled = is_over(), time.monotonic()
        latest = _latest(locate())
        if latest != followed:
            yield from _lines(tails, last=True)
            followed, tails = latest, _tails(latest, labels) if latest is not None else []
        yield from _lines(tails, last=over)
        if over:
            return
        time.sleep(_INTERVAL_S)


@dataclass(frozen=True)
class _Attempt:
    """One attempt, which has left output. Equal even after its files were moved to `previous/`."""

    run_dir: RunDirLayout = field(compare=False)
    number: int
    inode: int
    """Distinguishes the first attempt of a requeued job from that of the run before it, which had the same path."""


def _latest(run_dir: RunDirLayout | None) -> _Attempt | None:
    if run_dir is None or not (attempts := run_dir.attempts()):
        return None
    try:
        return _Attempt(run_dir, attempts[-1], run_dir.attempt_dir(attempts[-1]).stat().st_ino)
    except FileNotFoundError:
        return None


@dataclass(frozen=True)
class _Tail:
    label: str
    file: FileTail
    pace: Pace


def _tails(attempt: _Attempt, labels: Mapping[int, str]) -> list[_Tail]:
    tails = []
    for rank, label in labels.items():
        for stream in STREAMS:
            file = FileTail(attempt.run_dir.log_file(attempt.number, rank, stream))
            tails.append(_Tail(label, file, Pace(file, time.monotonic())))
    return tails


def _lines(tails: Iterable[_Tail], *, last: bool) -> Iterator[str]:
    """The lines written since the last call, and the states that are due; with `last`, also lines without an end."""
    for tail in tails:
        # No file stays open: a job can have tens of thousands.
        with closing(tail.file):
            for line in _new_lines(tail, last=last):
                yield f"{tail.label} {text_of(line)}\n"


def _new_lines(tail: _Tail, *, last: bool) -> Iterator[bytes]:
    ended = False
    for line in tail.file.lines():
        ended = True
        yield line
    if last:
        yield from tail.file.last_lines()
        return
    now = time.monotonic()
    tail.pace.observe(ended=ended, now=now)
    yield from tail.pace.due(now)
