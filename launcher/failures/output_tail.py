"""The last lines of a rank's output, and the exception or crash in them."""

import re
from linecache import getline
from pathlib import Path

from launcher.failures.crash import Crash, Frame, is_users
from launcher.terminal.rows import Rows
from launcher.terminal.text import text_of

_TAIL_BYTES = 16_384
_TAIL_LINES = 20
_CUT_LINE_CHARACTERS = 300
_FATAL = re.compile(r"^Fatal Python error: (.+)$", re.MULTILINE)
_DUMPED_FRAME = re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
_CRASHED = re.compile(r"^(?:Current thread .*|Stack )\(most recent call first\):$", re.MULTILINE)
_RANK_PREFIX = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)
"""torch's prefix of a traceback once a process has joined."""
_TRACEBACK = "Traceback (most recent call last):"
_PRINTED_FRAME = re.compile(r'^  File "(.+)", line (\d+), in (.+)\n(?:    (?! )(.*))?', re.MULTILINE)
_UNREADABLE = re.compile(
    r'^  File "(.+)", line (\d+)\n    (.*)\n(?:    .*\n)*((?:Syntax|Indentation|Tab)Error): (.*)\n*\Z', re.MULTILINE
)
"""A script with a syntax error has no traceback."""
_RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.DOTALL)


def tail_of(path: Path) -> list[str]:
    """The last lines of a file; none if it does not exist. Bytes that are not UTF-8 are escaped."""
    end, is_whole = _end_of(path)
    rows = Rows(path.name)
    lines = [text_of(line, errors="backslashreplace") for line in (*rows.feed(end), *rows.finish())]
    if is_whole:
        return lines[-_TAIL_LINES:]
    return lines[1:][-_TAIL_LINES:] or [f"... {line[-_CUT_LINE_CHARACTERS:]}" for line in lines]


def _end_of(path: Path) -> tuple[bytes, bool]:
    """The end of a file, and whether that is the whole file; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            return file.read(), size <= _TAIL_BYTES
    except OSError:
        return b"", True


def fatal_in(path: Path) -> Crash | None:
    """The crash in C whose stack faulthandler has written to a file."""
    try:
        text = path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    fatal = _FATAL.search(text)
    return _dumped(text[fatal.start() :], fatal[1]) if fatal is not None else None


def crash_in(path: Path) -> Crash | None:
    """The crash in C that faulthandler has written, or the traceback at the end of a Python program's output."""
    text = _RANK_PREFIX.sub("", _end_of(path)[0].decode(errors="backslashreplace"))
    fatal = _FATAL.search(text)
    return _dumped(text[fatal.start() :], fatal[1]) if fatal is not None else _printed(text)


def dumped_frames(text: str) -> list[Frame]:
    """The frames of a stack by faulthandler, innermost first."""
    return [
        Frame(file, int(line), function, getline(file, int(line)).strip(), is_users(file))
        for file, line, function in _DUMPED_FRAME.findall(text)
    ]


def _dumped(text: str, what: str) -> Crash:
    # Of several threads, the one that crashed.
    stack = _CRASHED.split(text)[-1].partition("\n\n")[0]
    return Crash(kind=what, text="", traceback=text, frames=tuple(reversed(dumped_frames(stack))))


def _printed(text: str) -> Crash | None:
    unreadable = _UNREADABLE.search(text)
    if unreadable is not None and _TRACEBACK not in text:
        file, line, source, kind, message = unreadable.groups()
        frame = Frame(file, int(line), "<module>", source.strip(), is_users(file))
        return Crash(kind=kind, text=message, traceback=unreadable[0], frames=(frame,), kinds=(kind,))
    _, found, last = text.rpartition(_TRACEBACK)
    lines = last.strip("\n").split("\n")
    at = next((number for number, line in enumerate(lines) if line and not line.startswith(" ")), None)
    raised = _RAISED.match("\n".join(lines[at:])) if at is not None else None
    # Only at the end: the program has survived a traceback in the middle.
    if not found or raised is None or at is None or len(lines) - at > _TAIL_LINES:
        return None
    frames = [
        Frame(file, int(line), function, source, is_users(file))
        for file, line, function, source in _PRINTED_FRAME.findall("\n".join(lines[:at]) + "\n")
    ]
    kind = raised[1].removeprefix("__main__.")  # Python 3.10 prints it
    return Crash(kind=kind, text=raised[2] or "", traceback=f"{_TRACEBACK}{last}", frames=tuple(frames), kinds=(kind,))
