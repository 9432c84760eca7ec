"""The ranks' output in a run folder: whose of it is wanted, as lines, to the end or as they come."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from mimo_role import Topology

STREAMS = ("stdout", "stderr")
_LOOK_S = 0.2
_ASK_S = 3.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LogFilter:
    """Whose output is wanted; what is left out does not restrict."""

    module: str | None = None
    stage: int | None = None
    """The position along pp, from 0; of `module`, or of any."""
    ranks: tuple[int, ...] = ()
    pattern: str | None = None
    """A regular expression that a line has to match somewhere."""
    streams: tuple[str, ...] = STREAMS

    def ranks_of(self, topology: Topology) -> list[int]:
        """The ranks that are meant.

        Raises:
            LaunchError: there is no such module, stage or rank, or none with all of them.
        """
        if self.module is not None and self.module not in topology.grids:
            raise LaunchError(f"--module {self.module}: there are {', '.join(topology.grids)}")
        if outside := [rank for rank in self.ranks if not 0 <= rank < topology.world_size]:
            raise LaunchError(f"--rank {outside[0]}: there are ranks 0-{topology.world_size - 1}")
        found = [rank for rank in self.ranks or range(topology.world_size) if self._is_meant(topology, rank)]
        if not found:
            asked = {"--module": self.module, "--stage": self.stage, "--rank": ",".join(map(str, self.ranks)) or None}
            raise LaunchError(f"no rank has {' '.join(f'{key} {value}' for key, value in asked.items() if value is not None)}")
        return found

    def _is_meant(self, topology: Topology, rank: int) -> bool:
        places = topology.coords_of(rank)
        of_module = [coords for name, coords in places.items() if self.module in (None, name)]
        return any(self.stage in (None, coords["pp"]) for coords in of_module)


def ranks_from(text: str | None) -> tuple[int, ...]:
    """Ranks as they are typed: `7`, `0,3-5`; none for `None`.

    Raises:
        LaunchError: not a list of ranks.
    """
    found: list[int] = []
    for part in text.split(",") if text is not None else ():
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise LaunchError(f"--rank {text}: write 7, or 0,3-5")
        found += range(int(match[1]), min(int(match[2] or match[1]), int(match[1]) + 100_000) + 1)
    return tuple(found)


@dataclass
class _Tail:
    path: Path
    prefix: str
    matches: Callable[[str], object]
    position: int = 0
    """How many bytes have been read. No file stays open: a job can have tens of thousands."""
    rest: bytes = b""

    def lines(self, *, last: bool) -> Iterator[str]:
        """What has been written since, as whole lines; with `last`, also a line without an end."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError:
            return
        if size > self.position:
            with self.path.open("rb") as file:
                file.seek(self.position)
                while self.position < size and (chunk := file.read(min(_CHUNK_BYTES, size - self.position))):
                    self.position += len(chunk)
                    *whole, self.rest = (self.rest + chunk).split(b"\n")
                    yield from self._shown(whole)
        if last and self.rest:
            whole, self.rest = [self.rest], b""
            yield from self._shown(whole)

    def _shown(self, lines: list[bytes]) -> Iterator[str]:
        for line in (line.decode(errors="replace") for line in lines):
            if self.matches(line):
                yield f"{self.prefix} {line}\n"


def lines_of(
    where: Callable[[], Path | None], plan: LaunchPlan, wanted: LogFilter, is_over: Callable[[], bool] | None = None
) -> Iterator[str]:
    """Lines behind their rank's role, of the last start of the ranks; rank by rank, or with `is_over` as they are written.

    Args:
        where: gives the folder that has the run's `logs`; `None` as long as the run has not begun.
        plan: the run's plan.
        wanted: whose lines.
        is_over: asked now and then; the lines end when it says so. A start of the ranks that begins later is followed too.

    Raises:
        LaunchError: `wanted` fits no rank, or is no regular expression.
    """
    ranks = wanted.ranks_of(plan.topology)
    try:
        matches = re.compile(wanted.pattern or "").search
    except re.error as error:
        raise LaunchError(f"{wanted.pattern!r} is not a regular expression: {error}") from None
    tails = _Tails(plan.topology, ranks, wanted.streams, matches)
    return _follow(where, tails, is_over) if is_over is not None else _read(where, tails)


@dataclass(frozen=True)
class _Tails:
    """The files that are wanted, in whatever start of the ranks."""

    topology: Topology
    ranks: list[int]
    streams: tuple[str, ...]
    matches: Callable[[str], object]

    def of(self, folder: Path | None) -> list[_Tail]:
        if folder is None:
            return []
        labels = {rank: f"[{self.topology.label_of(rank)} r{rank}]" for rank in self.ranks}
        return [
            _Tail(folder / f"rank{rank}.{stream}.log", label, self.matches)
            for rank, label in labels.items()
            for stream in self.streams
        ]


def _read(where: Callable[[], Path | None], wanted: _Tails) -> Iterator[str]:
    for tail in wanted.of(_latest(where())):
        yield from tail.lines(last=True)


def _follow(where: Callable[[], Path | None], wanted: _Tails, is_over: Callable[[], bool]) -> Iterator[str]:
    attempt, tails, asked = None, list[_Tail](), 0.0
    while True:
        over = False
        if time.monotonic() - asked > _ASK_S:
            over, asked = is_over(), time.monotonic()
        latest = _latest(where())
        if _identity(latest) != attempt:
            for tail in tails:
                yield from tail.lines(last=True)
            attempt, tails = _identity(latest), wanted.of(latest)
        for tail in tails:
            yield from tail.lines(last=over)
        if over:
            return
        time.sleep(_LOOK_S)


def _latest(run_dir: Path | None) -> Path | None:
    """The folder of the last start of the ranks, if there was one."""
    if run_dir is None:
        return None
    found = [path for path in run_dir.glob("logs/attempt*") if path.name.removeprefix("attempt").isdigit()]
    return max(found, key=lambda path: int(path.name.removeprefix("attempt")), default=None)


def _identity(folder: Path | None) -> tuple[str, int] | None:
    """Tells a requeued job's first start from that before it, which had the same name."""
    try:
        return None if folder is None else (folder.name, folder.stat().st_ino)
    except FileNotFoundError:
        return None
