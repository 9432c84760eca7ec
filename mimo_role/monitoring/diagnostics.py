"""On-demand diagnostics of a hung rank: its stacks, and the collectives in which it waits.

The stacks come from `faulthandler`, on a signal that is handled in C: this works for a rank whose main thread is inside a
collective, or holds the interpreter's lock. The stack of a crash in C goes to the same file. The collectives are written by a
thread that waits on a named pipe, at no cost meanwhile.
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
from mimo_role.host.node_dir import stacks_file, trace_request_pipe, traces_file
from mimo_role.monitoring.flight_recorder import GroupTrace, traces

STACKS_SIGNAL = signal.SIGRTMAX - 3
"""On this signal a rank writes its stacks. Scripts and libraries rarely use a real-time signal so near the last."""

_enabled = False


def enable_diagnostics(node_dir: Path, rank: int) -> None:
    """Answer requests for diagnostics in this process. It does nothing if called again, or if the node directory is gone."""
    global _enabled
    if _enabled or not node_dir.is_dir():
        return
    with suppress(OSError):
        pipe = trace_request_pipe(node_dir, rank)
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe, 0o600)
        # Open as long as the process lives. In append mode: the agent truncates the file before each request.
        file = os.open(stacks_file(node_dir, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        faulthandler.register(STACKS_SIGNAL, file=file)
        # torchelastic has directed it to stderr.
        faulthandler.enable(file=file, all_threads=False)
        # A crash of a data-loader worker is not the rank's.
        os.register_at_fork(after_in_child=lambda: faulthandler.enable(file=2))
        threading.Thread(target=_serve_traces, args=(node_dir, rank), name="mimo_role diagnostics", daemon=True).start()
        _enabled = True


def read_traces(node_dir: Path, rank: int) -> Sequence[GroupTrace] | None:
    """The collectives that a rank has written on request; `None` until then."""
    try:
        values = json.loads(traces_file(node_dir, rank).read_text(encoding="utf-8"))
        return [GroupTrace.from_dict(value) for value in values]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _serve_traces(node_dir: Path, rank: int) -> None:
    with suppress(OSError):  # the node directory is removed when the agent exits
        while True:
            with trace_request_pipe(node_dir, rank).open("rb") as pipe:
                pipe.read()
            write_whole(traces_file(node_dir, rank), json.dumps([trace.as_dict() for trace in traces()]))
