"""What a rank can tell of itself when it no longer makes progress: its stacks, and the collectives that it waits in.

The stacks come from `faulthandler`, by a signal that is answered in C: also by a rank whose main thread is inside a
collective, or holds the interpreter's lock. The stack of a crash in C goes to the same file. The collectives come from a
thread that waits on a named pipe and costs nothing meanwhile.
"""

import faulthandler
import json
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mimo_role.host.files import write_whole
from mimo_role.monitoring.flight_recorder import GroupTrace, traces

STACKS_SIGNAL = signal.SIGRTMAX - 3
"""At this a watched rank writes down its stacks. Scripts and their libraries use others."""

_watched = False


def stacks_file(folder: Path, rank: int) -> Path:
    """Where a rank's stacks are, in the folder that a node's ranks share with their launcher."""
    return folder / f"rank{rank}.stacks"


def traces_file(folder: Path, rank: int) -> Path:
    """Where the collectives are that a rank waits in."""
    return folder / f"rank{rank}.traces.json"


def question_pipe(folder: Path, rank: int) -> Path:
    """Who writes to it asks the rank for its collectives."""
    return folder / f"rank{rank}.ask"


def be_watched(folder: Path, rank: int) -> None:
    """Let this process answer from now on. Called again, or where the folder has gone, it changes nothing."""
    global _watched
    if _watched or not folder.is_dir():
        return
    with suppress(OSError):
        question_pipe(folder, rank).unlink(missing_ok=True)
        os.mkfifo(question_pipe(folder, rank), 0o600)
        # It stays open as long as the process lives.
        # Appended to: the agent empties it before it asks again.
        file = os.open(stacks_file(folder, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        faulthandler.register(STACKS_SIGNAL, file=file)
        # torchelastic has it write to stderr.
        faulthandler.enable(file=file, all_threads=False)
        # A data-loader worker that crashes is not the rank.
        os.register_at_fork(after_in_child=lambda: faulthandler.enable(file=2))
        threading.Thread(target=_answer, args=(folder, rank), name="mimo_role witness", daemon=True).start()
        _watched = True


def read_traces(folder: Path, rank: int) -> Sequence[GroupTrace] | None:
    """What a rank has answered; `None` as long as it has not."""
    try:
        return [GroupTrace.from_dict(value) for value in json.loads(traces_file(folder, rank).read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answer(folder: Path, rank: int) -> None:
    with suppress(OSError):  # the folder goes when the launcher does
        while True:
            with question_pipe(folder, rank).open("rb") as pipe:
                pipe.read()
            text = json.dumps([trace.as_dict() for trace in traces()])
            write_whole(traces_file(folder, rank), text)
