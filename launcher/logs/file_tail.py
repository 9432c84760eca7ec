"""Reads the lines of a file that is still being written."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

_CHUNK_BYTES = 1 << 20


class FileTail:
    """Yields the lines of one file as they are completed. The file need not exist yet."""

    def __init__(self, path: Path, skipped: Callable[[], tuple[int, int] | None] = lambda: None) -> None:
        """
        Args:
            path: the file.
            skipped: called after each read; the byte range that is left out, once it is known.
        """
        self._path = path
        self._skipped = skipped
        self._file: BinaryIO | None = None
        self._position = 0
        self._rest = b""
        """The beginning of a line whose end has not been written yet."""

    def lines(self, limit: int | None = None) -> Iterator[bytes]:
        """The lines completed since the last call, up to the present end of the file; after `limit` bytes, no more."""
        file = self._opened()
        if file is None:
            return
        end = os.fstat(file.fileno()).st_size
        if limit is not None:
            end = min(end, self._position + limit)
        while self._position < end and (chunk := file.read(min(_CHUNK_BYTES, end - self._position))):
            kept = self._without_skipped(chunk)
            self._position += len(chunk)
            *whole, self._rest = (self._rest + kept).split(b"\n")
            yield from whole

    def last_line(self) -> Iterator[bytes]:
        """The last line, if it has no end."""
        if self._rest:
            yield self._rest
            self._rest = b""

    def close(self) -> None:
        """Close the file. `lines` opens it again and continues."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO | None:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return None
            self._file.seek(self._position)
        return self._file

    def _without_skipped(self, chunk: bytes) -> bytes:
        skipped = self._skipped()
        if skipped is None:
            return chunk
        first, last = (max(0, place - self._position) for place in skipped)
        return chunk[:first] + chunk[last:]
