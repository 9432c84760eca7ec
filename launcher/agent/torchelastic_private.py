"""Private names of torchelastic that have no public counterpart.

`tests/launcher/agent/test_torchelastic_private.py` fails if they change.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.agent.server import local_elastic_agent
from torch.distributed.elastic.multiprocessing import PContext

# Their messages repeat ours, in terms of local ranks and process ids.
_SILENCED = ("torch.distributed.elastic", "torch.multiprocessing")

_START = "start_processes"
"""A function that the agent's module has imported."""


@contextmanager
def processes_made_by(make: Callable[..., PContext]) -> Iterator[None]:
    """Let torchelastic's agent make its processes by `make`, within a block.

    The agent calls `start_processes` with what it has decided about them, and that function has no interface for other
    kinds of processes. `make` takes the arguments of a `PContext`.
    """
    original = vars(local_elastic_agent)[_START]

    def start(**arguments: Any) -> PContext:
        for name in ("start_method", "numa_options"):
            arguments.pop(name, None)
        context = make(**arguments)
        context.start()
        return context

    setattr(local_elastic_agent, _START, start)
    try:
        yield
    finally:
        setattr(local_elastic_agent, _START, original)


def silence_torchelastic() -> None:
    """Every one of its loggers has a level of its own."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(_SILENCED):
            logging.getLogger(name).setLevel(logging.CRITICAL)
