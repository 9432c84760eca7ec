"""The folder in memory that a node's ranks share with their agent, for as long as it runs.

notice          the ranks have been warned that the job is about to end
rank3.beat      how far a rank has come
rank3.stacks    its stacks, when the agent has asked for them; rank3.ask, rank3.traces.json: likewise its collectives
rank3.error.json  the exception that has ended it, where the run folder could not be written
rank3.facts     what it says of itself before it joins; verdict: whether the ranks may go on
"""

import os
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from mimo_role.errors import ContextError
from mimo_role.preemption.notice import NOTICE

_MEMORY = Path("/dev/shm")  # noqa: S108 (a folder of our own is made there)


def make(agent_id: str) -> Path:
    """Make the folder. The warden removes it.

    Raises:
        ContextError: there is no place for it.
    """
    parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(gettempdir())
    try:
        # Containers that share the memory may have agents of one id.
        return Path(mkdtemp(prefix=f"mimo-{agent_id}-", dir=parent))
    except OSError as error:
        raise ContextError(f"{parent}: {error.strerror}; the ranks of this machine tell of themselves there") from None


def clear(folder: Path) -> None:
    """Forget all that the ranks of an earlier start have left; that they were warned holds for the next too."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name != NOTICE:
            file.unlink(missing_ok=True)
