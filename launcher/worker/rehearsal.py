"""The process of one rank in a rehearsal: a rank of the real job, in a world whose other ranks do not exist."""

import atexit
import json
import os
import resource
from pathlib import Path
from typing import Any

from mimo_role.host.files import write_whole


def prepare(task_file: str) -> list[str]:
    """Make this process the rank of the task, before it joins.

    Args:
        task_file: JSON that `launcher.rehearse.task` has written.

    Returns:
        The arguments of `entrypoint.run_python`.
    """
    from mimo_role.rehearsal import world  # late: a real rank does without it
    from mimo_role.rehearsal.board import Board

    task: dict[str, Any] = json.loads(Path(task_file).read_text(encoding="utf-8"))
    installed = world.install(
        Board(Path(task["board"])), task["rank"], task["world_size"], earlier=task["earlier"], steps=task["steps"]
    )
    rank = os.getpid()

    def record() -> None:
        if os.getpid() == rank:
            found = installed.close() | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
            write_whole(Path(task["record"]), json.dumps(found))

    # Registered before the exit functions of the script and of mimo_role, so that it is called after them.
    atexit.register(record)
    return [task["plan"], task["run_id"], task["node"]]
