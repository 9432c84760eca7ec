"""Reads the lines of a file that is still being written."""

import os
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

from launcher.terminal.rows import Rows

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
        self._file: FileIO | None = None
        self.position = 0
        """How much has been read."""
        self.rows = Rows(path.name)
        """The lines that are not over."""

    def lines(self, limit: int | None = None) -> Iterator[bytes]:
        """The lines completed since the last call, up to the present end of the file; after `limit` bytes, no more.

        The last state of a progress bar is returned one call later than its line end is read.
        """
        end = self._size()
        if end < self.position:  # it was truncated
            yield from self.last_lines()
            self.position = 0
        if limit is not None:
            end = min(end, self.position + limit)
        while self.position < end and (chunk := self._read(min(_CHUNK_BYTES, end - self.position))):
            kept = self._without_skipped(chunk)
            self.position += len(chunk)
            # What is written after a truncation may leave a hole.
            yield from self.rows.feed(kept.replace(b"\0", b""))
        yield from self.rows.settle()

    def last_lines(self) -> Iterator[bytes]:
        """The lines that are not over, once nothing more is written to them."""
        rows, self.rows = self.rows, Rows(self._path.name)
        return rows.finish()

    def unread(self) -> int:
        """The bytes between what has been read and the present end of the file."""
        size = self._size()
        return size - self.position if size >= self.position else size

    def close(self) -> None:
        """Close the file. `lines` opens it again and continues."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _size(self) -> int:
        """The size of the file; what has been read of it as long as it cannot be opened."""
        try:
            if self._file is None:
                self._file = self._path.open("rb", buffering=0)
            return os.fstat(self._file.fileno()).st_size
        except OSError:  # not there yet, or no file descriptor is free
            return self.position

    def _read(self, count: int) -> bytes:
        assert self._file is not None
        try:
            return os.pread(self._file.fileno(), count, self.position)
        except OSError:  # of a network file system; the next call tries again
            return b""

    def _without_skipped(self, chunk: bytes) -> bytes:
        skipped = self._skipped()
        if skipped is None:
            return chunk
        first, last = (max(0, place - self.position) for place in skipped)
        return chunk[:first] + chunk[last:]
