"""Follows the ranks' output files and passes whole lines on, each behind the prefix of the ranks that wrote it.

torchelastic's own tail has one prefix pattern for all ranks, a thread per file, and cuts lines that are written in parts.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

from launcher.failures.crash import read_crash
from launcher.logs.folding import LineFolder

_INTERVAL_S = 0.05
_CHUNK_BYTES = 1 << 20

Prefix = Callable[[Sequence[int]], str]


@dataclass
class Followed:
    """One output file of one rank."""

    path: Path
    rank: int
    sink: TextIO
    error_file: Path | None = None
    """Where the rank writes down its exception before it prints it: the agent tells of it, so it is left out here."""
    file: BinaryIO | None = None
    rest: bytes = field(default=b"")
    """The beginning of a line whose end has not been written yet."""
    left_out: tuple[int, int] | None = None

    @property
    def position(self) -> int:
        """How many bytes have been read."""
        return 0 if self.file is None else self.file.tell()

    def read(self, limit: int) -> tuple[bytes, bool]:
        """Up to so many bytes that are to be passed on, and whether there were any at all."""
        assert self.file is not None
        begin = self.position
        chunk = self.file.read(limit)
        if chunk and self.error_file is not None and self.left_out is None:
            with suppress(OSError, ValueError):  # a script may write anything there
                crash = read_crash(self.error_file.read_text(encoding="utf-8"))
                self.left_out = crash.written if crash is not None else None
        if not chunk or self.left_out is None:
            return chunk, bool(chunk)
        first, last = (max(0, place - begin) for place in self.left_out)
        return chunk[:first] + chunk[last:], True


class Follower:
    """A thread that passes on what is written to files, until it is stopped; then what is left."""

    def __init__(self, prefix: Prefix, fold_s: float) -> None:
        """
        Args:
            prefix: what stands before a line of these ranks.
            fold_s: for how long a line waits for other ranks to write it too; 0: it does not.
        """
        self._prefix = prefix
        self._fold_s = fold_s
        self._followed: list[Followed] = []
        self._folds: list[tuple[TextIO, LineFolder]] = []
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch output", daemon=True)
        self._thread.start()

    def follow(self, files: Iterable[Followed]) -> None:
        """Follow these files, which may not exist yet, instead of the earlier ones."""
        with self._turn:
            self._finish()
            self._followed = list(files)
            sinks = {id(followed.sink): followed.sink for followed in self._followed}
            ranks = len({followed.rank for followed in self._followed})
            self._folds = [(sink, LineFolder(ranks, self._fold_s)) for sink in sinks.values()]

    def catch_up(self) -> None:
        """Pass on what has been written by now."""
        with self._turn:
            for followed in self._followed:
                self._take(followed, _CHUNK_BYTES)
            self._let_go()

    def stop(self) -> None:
        """Pass on all that has been written by now, and close the files."""
        self._stop.set()
        self._thread.join()
        self._finish()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            with self._turn:
                for followed in self._followed:
                    self._take(followed, _CHUNK_BYTES)
                self._let_go(time.monotonic())

    def _finish(self) -> None:
        for followed in self._followed:
            # Up to its present end: a process that goes on writing is not waited for.
            size = followed.path.stat().st_size if followed.path.exists() else 0
            self._take(followed, max(0, size - followed.position))
            if followed.rest:
                self._fold_of(followed).add(followed.rank, [_text(followed.rest)], time.monotonic())
            if followed.file is not None:
                followed.file.close()
        self._let_go()
        self._followed, self._folds = [], []

    def _take(self, followed: Followed, limit: int) -> None:
        if followed.file is None:
            try:
                followed.file = followed.path.open("rb")
            except FileNotFoundError:
                return
        before = followed.position
        while limit > 0:
            chunk, is_more = followed.read(min(limit, _CHUNK_BYTES))
            if not is_more:
                break
            limit -= followed.position - before
            before = followed.position
            *lines, followed.rest = (followed.rest + chunk).split(b"\n")
            self._fold_of(followed).add(followed.rank, map(_text, lines), time.monotonic())

    def _fold_of(self, followed: Followed) -> LineFolder:
        return next(fold for sink, fold in self._folds if sink is followed.sink)

    def _let_go(self, now: float | None = None) -> None:
        for sink, fold in self._folds:
            if gone := fold.let_go(now):
                text = "".join(f"{self._prefix(folded.ranks)} {folded.line}\n" for folded in gone)
                # Whoever read our output may have gone, as in `mimo-launch run ... | head`; the files have it all.
                with suppress(OSError, ValueError):
                    sink.write(text)
                    sink.flush()


def _text(line: bytes) -> str:
    """A line as a terminal would leave it: a progress bar overwrites itself, and would overwrite the prefix."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
