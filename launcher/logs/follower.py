"""Follows the ranks' output files and prints whole lines, each with the prefix of the ranks that wrote it.

torchelastic's own tail has one prefix pattern for all ranks, a thread per file, and cuts lines that are written in parts.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from launcher.failures.crash import read_crash
from launcher.logs.file_tail import FileTail
from launcher.logs.folding import LineFolder

_INTERVAL_S = 0.05
_CHUNK_BYTES = 1 << 20

Prefix = Callable[[Sequence[int]], str]


class Followed:
    """One output file of one rank."""

    def __init__(self, path: Path, rank: int, sink: TextIO, error_file: Path | None = None) -> None:
        """
        Args:
            path: the file.
            rank: the rank that writes it.
            sink: where its lines are printed.
            error_file: the rank's record of the exception that ends it, written before the traceback is printed. The agent
                reports the exception, so the traceback is left out here.
        """
        self.rank = rank
        self.sink = sink
        self.tail = FileTail(path, self._printed_traceback)
        self._error_file = error_file
        self._traceback: tuple[int, int] | None = None

    def _printed_traceback(self) -> tuple[int, int] | None:
        """The bytes of the file that are the traceback of the exception."""
        if self._error_file is not None and self._traceback is None:
            with suppress(OSError, ValueError):  # a script may write anything there
                crash = read_crash(self._error_file.read_text(encoding="utf-8"))
                self._traceback = crash.written if crash is not None else None
        return self._traceback


class Follower:
    """A thread that prints what is written to files, until it is stopped; then the remainder."""

    def __init__(self, prefix: Prefix, fold_s: float) -> None:
        """
        Args:
            prefix: the prefix of a line that these ranks wrote.
            fold_s: how long a line is held for other ranks to write it too; 0: lines are not folded.
        """
        self._prefix = prefix
        self._fold_s = fold_s
        self._followed: list[Followed] = []
        self._folders: list[tuple[TextIO, LineFolder]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch output", daemon=True)
        self._thread.start()

    def follow(self, files: Iterable[Followed]) -> None:
        """Follow these files, which may not exist yet, instead of the earlier ones."""
        with self._lock:
            self._finish()
            self._followed = list(files)
            sinks = {id(followed.sink): followed.sink for followed in self._followed}
            ranks = len({followed.rank for followed in self._followed})
            self._folders = [(sink, LineFolder(ranks, self._fold_s)) for sink in sinks.values()]

    def catch_up(self) -> None:
        """Print what has been written by now."""
        with self._lock:
            self._read()
            self._print()

    def stop(self) -> None:
        """Print all that has been written by now, and close the files."""
        self._stop.set()
        self._thread.join()
        self._finish()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            with self._lock:
                self._read()
                self._print(time.monotonic())

    def _read(self) -> None:
        for followed in self._followed:
            self._add(followed, followed.tail.lines(_CHUNK_BYTES))

    def _finish(self) -> None:
        for followed in self._followed:
            # Up to its present end: a process that goes on writing is not waited for.
            self._add(followed, followed.tail.lines())
            self._add(followed, followed.tail.last_line())
            followed.tail.close()
        self._print()
        self._followed, self._folders = [], []

    def _add(self, followed: Followed, lines: Iterable[bytes]) -> None:
        folder = next(folder for sink, folder in self._folders if sink is followed.sink)
        folder.add(followed.rank, map(_text, lines), time.monotonic())

    def _print(self, now: float | None = None) -> None:
        for sink, folder in self._folders:
            if released := folder.release(now):
                text = "".join(f"{self._prefix(folded.ranks)} {folded.line}\n" for folded in released)
                # The reader of our output may have exited, as in `mimo-launch run ... | head`; the files are complete.
                with suppress(OSError, ValueError):
                    sink.write(text)
                    sink.flush()


def _text(line: bytes) -> str:
    """A line as a terminal would show it: a progress bar overwrites itself, and would overwrite the prefix."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")
