"""The lines of a stream as a terminal would show them, where a progress bar overwrites its own.

A bar returns to the start of its row (`\\r`) and writes its next state over the last one. Of several bars, as tqdm draws them
for nested loops, each has a row: the cursor moves down by line ends, which end no line, and up again by `ESC [A`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

LONGEST_LINE = 1 << 20
"""Bytes of one line that are kept."""
LONGEST_STATE = 1000
"""Bytes of a line without an end that are shown."""

_REACH = 64
"""Rows that bars may have below each other: a row further above the cursor is over."""
_MOVE = re.compile(rb"\x1b\[(?:(?P<rows>\d{0,3})(?P<up>[AF])|[01]?G|2K)")
"""The cursor moves up (with F to the start of the row), or to the start of its row (G); or the row is erased."""
_BEGUN_MOVE = re.compile(rb"\x1b(?:\[\d{0,3})?\Z")
_OVERWRITTEN = re.compile(rb"(\n\r[^\n\r\x1b]+\x1b\[A)(?:(\r[^\n\r\x1b]+)?(\n\r[^\n\r\x1b]+\x1b\[A))+")
"""States of two bars, of which the last ones remain: by far the most of what nested loops write."""
_CODE = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
_BEGUN_CHARACTER = re.compile(rb"(?:[\xc2-\xdf]|[\xe0-\xef][\x80-\xbf]?|[\xf0-\xf4][\x80-\xbf]{0,2})\Z")


class _Column(Enum):
    """Where in its row the cursor is: what the next text does to the text that is there."""

    NEW = auto()
    """At the start, after a line end: a new line begins."""
    RETURNED = auto()
    """At the start again: it is overwritten."""
    INSIDE = auto()
    """Behind it: it becomes longer."""


@dataclass(slots=True)
class _Row:
    text: bytearray = field(default_factory=bytearray)
    left_out: int = 0
    """Bytes after the longest line's."""
    is_bar: bool = False
    """Whether it was overwritten. Otherwise a line end is the end of the line."""
    shown: bytes | None = None
    """The state that was shown last."""

    def begin(self, *, is_bar: bool) -> None:
        """Remove the text for another one: a state, or a new line."""
        self.text.clear()
        self.left_out, self.is_bar = 0, is_bar
        if not is_bar:
            self.shown = None

    def extend(self, text: bytes, longest: int) -> None:
        room = longest - len(self.text)
        self.text += text[:room]
        self.left_out += max(0, len(text) - room)

    @property
    def is_blank(self) -> bool:
        """Whether nothing of it can be seen."""
        return len(self.text) <= LONGEST_STATE and not _CODE.sub(b"", self.text).strip()

    @property
    def is_line(self) -> bool:
        """Whether it is a line of its own, once it is over: not a bar that was removed, nor a state that was shown."""
        return bytes(self.text) != self.shown and not (self.is_bar and self.is_blank)

    def state(self) -> bytes:
        if len(self.text) <= LONGEST_STATE and not self.left_out:
            return _whole_characters(bytes(self.text))
        return _whole_characters(bytes(self.text[:LONGEST_STATE])) + b"..."


class Rows:
    """Splits a stream into lines, however it is cut into parts.

    It holds the row with the cursor, those of other bars, and few bytes of each, however long the stream overwrites them.
    """

    def __init__(self, name: str, longest: int = LONGEST_LINE) -> None:
        """
        Args:
            name: the file that has the rest of a line of which only the beginning is returned.
            longest: the number of bytes of a line that are returned.
        """
        self._name = name
        self._longest = longest
        self._rows: list[_Row] = []
        """Those that are not over. None: the cursor is at the start of a new line."""
        self._at = 0
        """The row with the cursor."""
        self._above = 0
        """How far the cursor is above the first row, where lines were that are over."""
        self._highest = 0
        """The highest row that has had the cursor since the last call of `settle`."""
        self._column = _Column.NEW
        self._begun_move = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Read the next part of the stream. Yields the lines that are certain to be over."""
        data = self._begun_move + data
        begun = _BEGUN_MOVE.search(data, max(0, len(data) - 5))
        self._begun_move = begun[0] if begun is not None else b""
        data = data[: len(data) - len(self._begun_move)]
        if b"\x1b[A" in data:
            data = _OVERWRITTEN.sub(rb"\1\2\3", data)
        *ended, rest = data.split(b"\n")
        for text in ended:
            if not self._rows and self._is_plain(text):
                yield text
            else:
                self._write(text)
                yield from self._end_line()
        self._write(rest)

    def settle(self) -> Iterator[bytes]:
        """Yields the lines above the cursor, if it has not been there since the last call.

        The line end behind a bar's state may end its line. It may also be the way to the next bar, from which the cursor
        returns.
        """
        yield from self._release(self._highest)
        self._highest = self._at

    def finish(self) -> Iterator[bytes]:
        """The end of the stream: yields all lines that are left. Nothing is read afterwards."""
        self._write(self._begun_move)
        yield from self._release(self._at)
        yield from (self._line(row) for row in self._unfinished() if row.is_line)

    def states(self) -> list[bytes]:
        """What is shown of the lines that are not over, from the top."""
        return [row.state() for row in self._unfinished()]

    def new_states(self) -> list[bytes]:
        """The states that have changed since the last call. A line that ends in one of them is not returned again."""
        changed = [row for row in self._unfinished() if row.state() != row.shown]
        for row in changed:
            row.shown = row.state()
        return [row.shown for row in changed if row.shown is not None]

    @property
    def is_new(self) -> bool:
        """Whether none of the lines that are not over has been shown."""
        return all(row.shown is None for row in self._unfinished())

    def _unfinished(self) -> list[_Row]:
        # After a line end, bars further down are left over; the next text overwrites them.
        is_new = self._column is _Column.NEW
        below = [row for row in self._rows[self._at :] if not (is_new and row.is_bar)]
        return [row for row in (*self._rows[: self._at], *below) if not row.is_blank]

    def _is_plain(self, text: bytes) -> bool:
        """Whether it is a line that can be passed on as it is: nearly all are."""
        if b"\r" in text or _is_empty(text) or len(text) > self._longest:
            return False
        return b"\x1b[" not in text or _MOVE.search(text) is None

    def _write(self, text: bytes) -> None:
        at = 0
        for move in _MOVE.finditer(text):
            self._put(text[at : move.start()])
            self._move(int(move["rows"] or 1) or 1 if move["up"] else 0, stays_inside=move["up"] == b"A")
            at = move.end()
        self._put(text[at:])

    def _move(self, rows: int, *, stays_inside: bool) -> None:
        at = self._at - self._above - rows
        self._at, self._above = max(0, at), min(max(0, -at), _REACH)
        self._highest = min(self._highest, self._at)
        self._current()
        if not stays_inside or self._column is _Column.NEW:
            self._column = _Column.RETURNED

    def _put(self, text: bytes) -> None:
        if not text:
            return
        # Those that are over are not returned again.
        self._rows[:0] = [_Row(shown=b"") for _ in range(self._above)]
        self._above = 0
        row = self._current()
        written = text.rstrip(b"\r")
        if written:
            begin = written.rfind(b"\r") + 1
            if begin or self._column is not _Column.INSIDE:
                row.begin(is_bar=begin > 0 or self._column is _Column.RETURNED)
            row.extend(written[begin:], self._longest)
            self._column = _Column.INSIDE
        if len(written) < len(text):
            self._column = _Column.RETURNED

    def _current(self) -> _Row:
        while len(self._rows) <= self._at:
            self._rows.append(_Row())
        return self._rows[self._at]

    def _end_line(self) -> Iterator[bytes]:
        self._column = _Column.NEW
        if self._above:
            self._above -= 1
            return iter(())
        row = self._current()
        self._at += 1
        # An empty line may be the way to the row of a bar.
        if not row.is_bar and not _is_empty(row.text):
            return self._release(self._at)
        return self._release(self._at - _REACH if self._at > 2 * _REACH else 0)

    def _release(self, count: int) -> Iterator[bytes]:
        if count <= 0:
            return iter(())
        released, self._rows = self._rows[:count], self._rows[count:]
        self._at -= count
        self._highest = max(0, self._highest - count)
        return (self._line(row) for row in released if row.is_line)

    def _line(self, row: _Row) -> bytes:
        if not row.left_out:
            return bytes(row.text)
        return _whole_characters(bytes(row.text)) + f"... ({row.left_out} more bytes are in {self._name})".encode()


def _is_empty(text: bytes | bytearray) -> bool:
    return not text or text.isspace()


def _whole_characters(text: bytes) -> bytes:
    """The text without the beginning of a character at its end."""
    return text[:-3] + _BEGUN_CHARACTER.sub(b"", text[-3:])
