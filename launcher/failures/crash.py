"""The exception that ends a rank: the rank writes it to a file, and the agent reads it for the report.

The file has torchelastic's format, so that other tools find the message, and more fields of our own.
"""

import json
import os
import re
import sysconfig
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import launcher
import mimo_role
from mimo_role.host.files import write_whole

_NOT_THE_USERS = (sysconfig.get_path("stdlib"), *launcher.__path__, *mimo_role.__path__)
_TEXT_LIMIT = 4_000
_CAUSE_LIMIT = 500
_CAUSES = 4
_TRACEBACK_LIMIT = 32_000
_FRAMES_LIMIT = 100


@dataclass(frozen=True)
class Frame:
    """One line of a traceback."""

    file: str
    line: int
    function: str
    source: str
    """The source text of the line; empty where it cannot be read."""
    is_users: bool
    """Whether the file belongs to the user: not to Python, an installed package or mimo-launch."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, kw_only=True)
class Crash:
    """An exception, or a crash in C, as text."""

    kind: str
    """Its class: `RuntimeError`, or `package.module.OwnError`."""
    text: str
    """Its message, shortened in the middle."""
    traceback: str
    """As Python prints it, from the first frame of the script on, shortened in the middle."""
    frames: tuple[Frame, ...] = ()
    """From the first frame of the script on, outermost first; of a deep recursion, both ends."""
    causes: tuple[str, ...] = ()
    """Its notes, and the exceptions that caused it, the nearest first."""
    kinds: tuple[str, ...] = ()
    """Its class and the base classes."""
    written: tuple[int, int] | None = None
    """The position of the traceback in the rank's stderr, in bytes."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Crash":
        """The inverse of `dataclasses.asdict`, after JSON too."""
        frames = tuple(Frame(**frame) for frame in value["frames"])
        written = tuple(value["written"]) if value["written"] else None
        texts = {name: tuple(value[name]) for name in ("kinds", "causes")}
        return cls(**dict(value) | texts | {"frames": frames, "written": written})


def write_crash(
    error: BaseException, frames: TracebackType | None, file: Path, *, to_stderr: bool, fallback: Path | None
) -> None:
    """Print the traceback, and write the exception to `file`, or to `fallback` where that cannot be written.

    Args:
        error: the exception that ends the rank.
        frames: its traceback, from the first frame of the script on.
        file: the file that the agent reads first.
        to_stderr: whether to print it.
        fallback: the file that the agent reads if `file` does not exist.
    """
    shown = "".join(traceback.format_exception(type(error), error, frames))
    printed = shown.encode(errors="backslashreplace") if to_stderr else b""
    crash = Crash(
        kind=_name_of(type(error)),
        text=_shortened(_text_of(error), _TEXT_LIMIT),
        traceback=_shortened(shown, _TRACEBACK_LIMIT),
        frames=(*map(_frame, _ends_of(traceback.extract_tb(frames))), *_syntax_error(error)),
        causes=tuple(_causes_of(error)),
        kinds=tuple(_name_of(kind) for kind in type(error).__mro__[:-1]),
        # The follower leaves these bytes out, since the agent reports them, so they must be known before they are printed.
        written=_position_in_stderr(len(printed)) if printed else None,
    )
    _save(crash, file, fallback)
    with suppress(OSError):  # a full disk
        os.write(2, printed)


def _syntax_error(error: BaseException) -> list[Frame]:
    """The line of a source file with a syntax error, for which there is no frame."""
    if not isinstance(error, SyntaxError) or error.filename is None:
        return []
    return [Frame(error.filename, error.lineno or 0, "<module>", (error.text or "").strip(), is_users(error.filename))]


def _causes_of(error: BaseException) -> Iterator[str]:
    yield from (f"note: {_shortened(str(note), _CAUSE_LIMIT)}" for note in getattr(error, "__notes__", ()))
    for member in getattr(error, "exceptions", ())[:_CAUSES]:
        yield f"one of its exceptions: {_name_of(type(member))}: {_shortened(_text_of(member), _CAUSE_LIMIT)}"
    for _ in range(_CAUSES):
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None:
            return
        yield f"caused by {_name_of(type(behind))}: {_shortened(_text_of(behind), _CAUSE_LIMIT)}"
        error = behind


def is_users(file: str) -> bool:
    """Whether a source file belongs to the user: not to Python, an installed package or mimo-launch."""
    foreign = file.startswith((*_NOT_THE_USERS, "<")) or re.search(r"/(?:site|dist)-packages/|/lib/python3\.\d+/", file)
    return not foreign


def read_crash(text: str) -> Crash | None:
    """The exception in a file of `write_crash`, or of torchelastic's `record` in a command; `None` if it is neither."""
    try:
        value = json.loads(text)
        if "crash" not in value:
            return _from_torchelastic(value["message"])
        return Crash.from_dict(value["crash"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_torchelastic(message: dict[str, object] | str) -> Crash:
    whole = str(message["message"]) if isinstance(message, dict) else message
    kind, _, text = whole.partition(": ")
    more = message.get("extraInfo") if isinstance(message, dict) else None
    stack = str(more.get("py_callstack", "")) if isinstance(more, dict) else ""
    return Crash(kind=kind, text=text, traceback=stack or whole, kinds=(kind,))


def _save(crash: Crash, file: Path, fallback: Path | None) -> None:
    message = {"message": f"{crash.kind}: {crash.text}", "extraInfo": {"py_callstack": crash.traceback, "timestamp": _now()}}
    text = json.dumps({"message": message, "crash": asdict(crash)})
    for path in (file, fallback):
        with suppress(OSError):
            if path is not None:
                # Written atomically: torchelastic ends the agent if it cannot parse the file.
                write_whole(path, text)
                return


def _ends_of(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    half = _FRAMES_LIMIT // 2
    return frames if len(frames) <= _FRAMES_LIMIT else frames[:half] + frames[-half:]


def _frame(frame: traceback.FrameSummary) -> Frame:
    return Frame(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip(), is_users(frame.filename))


def _now() -> str:
    return str(int(time.time()))


def _position_in_stderr(size: int) -> tuple[int, int] | None:
    try:
        begin = os.fstat(2).st_size
    except OSError:  # the script has closed it
        return None
    return begin, begin + size


def _name_of(kind: type) -> str:
    return kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # whatever a script's own __str__ raises
        return f"(str() of it failed: {type(second).__name__})"


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters left out) ...\n{text[-half:]}"
