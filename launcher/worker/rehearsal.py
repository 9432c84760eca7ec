"""The process of one rank in a rehearsal: a rank of the real job, in a world whose other ranks do not exist."""

import atexit
import json
import os
import resource
import sys
import time
from collections.abc import Collection
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.worker import entrypoint, main_program, process_end
from mimo_role.host.files import write_whole

if TYPE_CHECKING:
    from mimo_role.rehearsal.memory import Memory


def run(task_file: str, *, started_with: Collection[str]) -> None:
    """Prepare the rank as in a real run, and run the script as the main program.

    Args:
        task_file: JSON that `launcher/rehearse/rehearsed_rank.py` has written.
        started_with: the modules that were imported before mimo-launch's own.
    """
    from mimo_role.rehearsal import world  # late: a real rank does without it
    from mimo_role.rehearsal.board import Board

    task: dict[str, Any] = json.loads(Path(task_file).read_text(encoding="utf-8"))
    memory = _memory(task["tensors"])
    installed = world.install(
        Board(Path(task["board"])),
        task["rank"],
        task["world_size"],
        earlier=task["earlier"],
        steps=task["steps"],
        observe=None if memory is None else memory.tracker.communicated,
    )
    clock = _ScriptClock()
    rank = os.getpid()

    def record() -> None:
        if os.getpid() == rank:
            peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            found: dict[str, Any] = {"peak_bytes": peak, "cpu_seconds": time.process_time(), "script_seconds": clock.seconds}
            if memory is not None:
                found["memory"] = memory.as_dict()
            write_whole(Path(task["calls"]), json.dumps(installed.calls.as_dict()))
            write_whole(Path(task["record"]), json.dumps(installed.close() | found))
            process_end.end_if_succeeded()

    sys.addaudithook(partial(_refuse_exec, rank))
    # Registered before the exit functions of the script and of mimo_role, so that it is called after them.
    atexit.register(record)
    run_as_main = installed.calls.around(main_program.run_as_main)
    run_as_main = run_as_main if memory is None else memory.around(run_as_main)
    vars(entrypoint).update(run_as_main=clock.around(run_as_main))
    entrypoint.run_python(task["plan"], task["run_id"], task["node"], started_with=started_with)


def _refuse_exec(rank: int, event: str, _: object) -> None:
    """An audit hook: another program in the rank's process would not be in the rehearsal, and would wait for real peers."""
    if event == "os.exec" and os.getpid() == rank:
        from mimo_role.errors import MimoError  # late, as all of the package here

        raise MimoError(
            "a rehearsal ends where a script replaces its process by another program (os.exec*); start the program from the "
            "config instead, or rehearse what it runs"
        )


def _memory(tensors: str | None) -> "Memory | None":
    if tensors is None:
        return None
    from mimo_role.rehearsal.memory import Memory  # late: it imports much of torch

    return Memory(fake=tensors == "fake")


class _ScriptClock:
    """Measures the time that the script takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, run_as_main: Any) -> Any:
        """What replaces the function that runs the script."""

        @wraps(run_as_main)
        def timed(*arguments: Any, **settings: Any) -> None:
            began = time.monotonic()
            try:
                run_as_main(*arguments, **settings)
            finally:
                self.seconds = time.monotonic() - began

        return timed
