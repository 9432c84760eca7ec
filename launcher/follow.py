"""Follows the ranks' output files and passes whole lines on, each behind its rank's prefix.

torchelastic's own tail has one prefix pattern for all ranks, a thread per file, and cuts lines that are written in parts.
"""

import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TextIO

_INTERVAL_S = 0.05
_CHUNK_BYTES = 1 << 20


@dataclass
class Followed:
    """One output file of one rank."""

    path: Path
    prefix: str
    sink: TextIO
    file: BinaryIO | None = None
    rest: bytes = field(default=b"")
    """The beginning of a line whose end has not been written yet."""

    @property
    def position(self) -> int:
        """How many bytes have been read."""
        return 0 if self.file is None else self.file.tell()


class Follower:
    """A thread that passes on what is written to files, until it is stopped; then what is left."""

    def __init__(self) -> None:
        self._followed: list[Followed] = []
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch output", daemon=True)
        self._thread.start()

    def follow(self, files: Iterable[Followed]) -> None:
        """Follow these files, which may not exist yet, instead of the earlier ones."""
        with self._turn:
            self._finish()
            self._followed = list(files)

    def stop(self) -> None:
        """Pass on all that has been written by now, and close the files."""
        self._stop.set()
        self._thread.join()
        self._finish()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            with self._turn:
                for followed in self._followed:
                    self._pass_on(followed, _CHUNK_BYTES)

    def _finish(self) -> None:
        for followed in self._followed:
            # Up to its present end: a process that goes on writing is not waited for.
            size = followed.path.stat().st_size if followed.path.exists() else 0
            self._pass_on(followed, max(0, size - followed.position))
            if followed.rest:
                self._write(followed, [followed.rest])
            if followed.file is not None:
                followed.file.close()
        self._followed = []

    def _pass_on(self, followed: Followed, limit: int) -> None:
        if followed.file is None:
            try:
                followed.file = followed.path.open("rb")
            except FileNotFoundError:
                return
        while limit > 0 and (chunk := followed.file.read(min(limit, _CHUNK_BYTES))):
            limit -= len(chunk)
            *lines, followed.rest = (followed.rest + chunk).split(b"\n")
            self._write(followed, lines)

    @staticmethod
    def _write(followed: Followed, lines: list[bytes]) -> None:
        if lines:
            text = "".join(f"{followed.prefix} {line.decode(errors='replace')}\n" for line in lines)
            # Whoever read our output may have gone, as in `mimo-launch run ... | head`; the files have it all.
            with suppress(OSError, ValueError):
                followed.sink.write(text)
                followed.sink.flush()
