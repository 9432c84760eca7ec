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


class Follower:
    """A thread that passes on what is written to files, until it is stopped; then what is left."""

    def __init__(self) -> None:
        self._followed: list[Followed] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mimo-launch output", daemon=True)
        self._thread.start()

    def follow(self, files: Iterable[Followed]) -> None:
        """Add files; they may not exist yet."""
        self._followed = [*self._followed, *files]

    def stop(self) -> None:
        """Pass on all that was written, and close the files."""
        self._stop.set()
        self._thread.join()
        for followed in self._followed:
            self._pass_on(followed)
            if followed.rest:
                self._write(followed, [followed.rest])
            if followed.file is not None:
                followed.file.close()

    def _run(self) -> None:
        while not self._stop.wait(_INTERVAL_S):
            for followed in self._followed:
                self._pass_on(followed)

    def _pass_on(self, followed: Followed) -> None:
        if followed.file is None:
            try:
                followed.file = followed.path.open("rb")
            except FileNotFoundError:
                return
        while chunk := followed.file.read(_CHUNK_BYTES):
            *lines, followed.rest = (followed.rest + chunk).split(b"\n")
            self._write(followed, lines)

    @staticmethod
    def _write(followed: Followed, lines: list[bytes]) -> None:
        if lines:
            text = "".join(f"{followed.prefix} {line.decode(errors='replace')}\n" for line in lines)
            # Whoever read our output may have gone, as in `mimo-launch run ... | head`; the files have it all.
            with suppress(BrokenPipeError):
                followed.sink.write(text)
                followed.sink.flush()
