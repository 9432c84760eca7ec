"""How a rank writes down the exception that ends it, so that the agent can tell what happened.

The file has the form of torchelastic's, so that other tools find the message, and ours beside it.
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
    """The line's text; empty where it cannot be read."""
    is_users: bool
    """Whether it is neither Python's, nor an installed package's, nor ours."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, kw_only=True)
class Crash:
    """An exception, in words."""

    kind: str
    """Its class: `RuntimeError`, or `package.module.OwnError`."""
    text: str
    """Its message, shortened in the middle."""
    traceback: str
    """As Python prints it, from the script's first frame on, shortened in the middle."""
    frames: tuple[Frame, ...] = ()
    """From the script's first on, outermost first; of a deep recursion, both ends."""
    causes: tuple[str, ...] = ()
    """The exceptions behind it, the nearest first, and its notes."""
    kinds: tuple[str, ...] = ()
    """The class and those that it is derived from."""
    written: tuple[int, int] | None = None
    """Where in the rank's stderr the traceback stands, in bytes."""

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "Crash":
        """The inverse of `dataclasses.asdict`, after JSON too."""
        frames = tuple(Frame(**frame) for frame in value["frames"])
        written = tuple(value["written"]) if value["written"] else None
        texts = {name: tuple(value[name]) for name in ("kinds", "causes")}
        return cls(**dict(value) | texts | {"frames": frames, "written": written})


def write_down(error: BaseException, frames: TracebackType | None, file: Path, *, to_stderr: bool, beside: Path | None) -> None:
    """Print the traceback, and keep it in `file`, or `beside` it where that cannot be written.

    Args:
        error: what ends the rank.
        frames: its traceback, from the frame on that is of interest.
        file: where the agent looks first.
        to_stderr: whether to print it too.
        beside: where the agent looks if there is nothing in `file`.
    """
    shown = "".join(traceback.format_exception(type(error), error, frames))
    printed = shown.encode(errors="backslashreplace") if to_stderr else b""
    crash = Crash(
        kind=_name_of(type(error)),
        text=_shortened(_text_of(error), _TEXT_LIMIT),
        traceback=_shortened(shown, _TRACEBACK_LIMIT),
        frames=(*map(_frame, _ends_of(traceback.extract_tb(frames))), *_unreadable(error)),
        causes=tuple(_causes_of(error)),
        kinds=tuple(_name_of(kind) for kind in type(error).__mro__[:-1]),
        # Whoever follows the output leaves it out there: the agent tells it. So this must be known before it is printed.
        written=_place_in_stderr(len(printed)) if printed else None,
    )
    _save(crash, file, beside)
    with suppress(OSError):  # a full disk
        os.write(2, printed)


def _unreadable(error: BaseException) -> list[Frame]:
    """The line of a source file that Python cannot read, which no frame tells."""
    if not isinstance(error, SyntaxError) or error.filename is None:
        return []
    return [Frame(error.filename, error.lineno or 0, "<module>", (error.text or "").strip(), is_users(error.filename))]


def _causes_of(error: BaseException) -> Iterator[str]:
    yield from (f"note: {_shortened(str(note), _CAUSE_LIMIT)}" for note in getattr(error, "__notes__", ()))
    for member in getattr(error, "exceptions", ())[:_CAUSES]:
        yield f"one of them: {_name_of(type(member))}: {_shortened(_text_of(member), _CAUSE_LIMIT)}"
    for _ in range(_CAUSES):
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None:
            return
        yield f"caused by {_name_of(type(behind))}: {_shortened(_text_of(behind), _CAUSE_LIMIT)}"
        error = behind


def is_users(file: str) -> bool:
    """Whether a source file is neither Python's, nor an installed package's, nor ours."""
    foreign = file.startswith((*_NOT_THE_USERS, "<")) or re.search(r"/(?:site|dist)-packages/|/lib/python3\.\d+/", file)
    return not foreign


def read_crash(text: str) -> Crash | None:
    """What `write_down` has kept, or torchelastic's `record` in a command; `None` if it is neither."""
    try:
        value = json.loads(text)
        if "crash" not in value:
            return _from_torchelastic(value["message"])
        return Crash.from_dict(value["crash"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _from_torchelastic(message: dict[str, object] | str) -> Crash:
    said = str(message["message"]) if isinstance(message, dict) else message
    kind, _, text = said.partition(": ")
    more = message.get("extraInfo") if isinstance(message, dict) else None
    stack = str(more.get("py_callstack", "")) if isinstance(more, dict) else ""
    return Crash(kind=kind, text=text, traceback=stack or said, kinds=(kind,))


def _save(crash: Crash, file: Path, beside: Path | None) -> None:
    message = {"message": f"{crash.kind}: {crash.text}", "extraInfo": {"py_callstack": crash.traceback, "timestamp": _now()}}
    text = json.dumps({"message": message, "crash": asdict(crash)})
    for path in (file, beside):
        with suppress(OSError):
            if path is not None:
                # Half a file would not do: torchelastic ends the agent over one that it cannot read.
                write_whole(path, text)
                return


def _ends_of(frames: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    half = _FRAMES_LIMIT // 2
    return frames if len(frames) <= _FRAMES_LIMIT else frames[:half] + frames[-half:]


def _frame(frame: traceback.FrameSummary) -> Frame:
    return Frame(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip(), is_users(frame.filename))


def _now() -> str:
    return str(int(time.time()))


def _place_in_stderr(size: int) -> tuple[int, int] | None:
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
        return f"(its text cannot be made: {type(second).__name__})"


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - 2 * half} characters left out) ...\n{text[-half:]}"
