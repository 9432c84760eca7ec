"""One output file of one rank, which is printed while it grows."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from launcher.failures.crash import read_crash
from launcher.logs.file_tail import FileTail
from launcher.logs.pace import Pace


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
        self.pace = Pace(self.tail, time.monotonic())
        self._error_file = error_file
        self._traceback: tuple[int, int] | None = None

    def _printed_traceback(self) -> tuple[int, int] | None:
        """The bytes of the file that are the traceback of the exception."""
        if self._error_file is not None and self._traceback is None:
            with suppress(OSError, ValueError):  # a script may write anything there
                crash = read_crash(self._error_file.read_text(encoding="utf-8"))
                self._traceback = crash.written if crash is not None else None
        return self._traceback
