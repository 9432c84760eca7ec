"""Follows the ranks' output files and prints whole lines, each with the prefix of the ranks that wrote it.

torchelastic's own tail has one prefix pattern for all ranks, a thread per file, and cuts lines that are written in parts.
"""

import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

from launcher.logs.folding import LineFolder
from launcher.logs.followed import Followed
from launcher.logs.states import Prefix, States
from launcher.terminal.text import text_of

_INTERVAL_S = 0.05
_CHUNK_BYTES = 1 << 20


class Follower:
    """A thread that prints what is written to files, until it is stopped; then the remainder."""

    def __init__(self, prefix: Prefix, fold_s: float, states: States) -> None:
        """
        Args:
            prefix: the prefix of a line that these ranks wrote.
            fold_s: how long a line is held for other ranks to write it too; 0: lines are not folded.
            states: shows lines without an end.
        """
        self._prefix = prefix
        self._fold_s = fold_s
        self._states = states
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
            self._states.clear()
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
                now = time.monotonic()
                for followed, states in self._states.due(self._followed, now):
                    self._add(followed, states)
                self._print(now)

    def _read(self) -> None:
        for followed in self._followed:
            self._read_lines(followed, _CHUNK_BYTES)

    def _read_lines(self, followed: Followed, limit: int) -> None:
        ended = self._add(followed, followed.tail.lines(limit))
        followed.pace.observe(ended=ended, now=time.monotonic())

    def _finish(self) -> None:
        # Up to their present ends: a process that keeps writing is not waited for. In parts, which are printed one by one.
        unread = [(followed, followed.tail.unread()) for followed in self._followed]
        self._states.clear()
        for begin in range(0, max((size for _, size in unread), default=0), _CHUNK_BYTES):
            for followed, size in unread:
                if begin < size:
                    self._read_lines(followed, min(_CHUNK_BYTES, size - begin))
            self._print(time.monotonic())
        for followed in self._followed:
            self._add(followed, followed.tail.last_lines())
            followed.tail.close()
        self._print()
        self._followed, self._folders = [], []

    def _add(self, followed: Followed, lines: Iterable[bytes]) -> bool:
        """Whether there were any."""
        folder = next(folder for sink, folder in self._folders if sink is followed.sink)
        texts = [*map(text_of, lines)]
        folder.add(followed.rank, texts, time.monotonic())
        return bool(texts)

    def _print(self, now: float | None = None) -> None:
        for sink, folder in self._folders:
            if released := folder.release(now):
                text = "".join(f"{self._prefix(folded.ranks)} {folded.line}\n" for folded in released)
                # The reader of our output may have exited, as in `mimo-launch run ... | head`; the files are complete.
                with self._states.lifted(), suppress(OSError, ValueError):
                    sink.write(text)
                    sink.flush()
