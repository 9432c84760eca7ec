"""A terminal in memory, with what `BottomLines` uses."""

import io
import re

_TOKEN = re.compile(r"\x1b\[(\??\d*)([A-Za-z])|\n|\r|[^\x1b\n\r]+")


class Screen(io.StringIO):
    """A text stream that shows what has been written to it."""

    def __init__(self, width=40):
        super().__init__()
        self.width = width
        self.rows = [""]
        self.row = self.column = 0
        self.wraps = True

    def isatty(self):
        return True

    def write(self, text):
        """Each code changes the screen as a terminal would."""
        for token in _TOKEN.finditer(text):
            if token[2] is not None:
                self._obey(token[1], token[2])
            elif token[0] == "\n":
                self.row, self.column = self.row + 1, 0
                self.rows += [""] * (self.row + 1 - len(self.rows))
            elif token[0] == "\r":
                self.column = 0
            else:
                self._put(token[0])
        return super().write(text)

    def _obey(self, number, code):
        if code == "A":
            self.row = max(0, self.row - int(number or 1))
        elif code == "J":
            self.rows[self.row :] = [self.rows[self.row][: self.column]]
        elif (number, code) in (("?7", "l"), ("?7", "h")):
            self.wraps = code == "h"
        elif (number, code) != ("0", "m"):
            raise ValueError(f"unknown code {number}{code}")

    def _put(self, text):
        assert not self.wraps or len(text) <= self.width, "a line that is redrawn wraps"
        shown = self.rows[self.row].ljust(self.column)
        self.rows[self.row] = (shown[: self.column] + text + shown[self.column + len(text) :])[: self.width]
        self.column += len(text)

    @property
    def shown(self):
        """The rows that are not empty."""
        return [row for row in self.rows if row]
