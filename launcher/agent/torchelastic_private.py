"""Private names of torchelastic that have no public counterpart.

`tests/launcher/agent/test_torchelastic_private.py` fails if they change.
"""

import logging
from multiprocessing.process import BaseProcess

from torch.distributed.elastic.multiprocessing import MultiprocessContext, PContext
from torch.distributed.elastic.multiprocessing.api import SubprocessContext

# Their messages repeat ours, in terms of local ranks and process ids.
_SILENCED = ("torch.distributed.elastic", "torch.multiprocessing")


def processes_of(context: PContext | None) -> dict[int, BaseProcess]:
    """The ranks' process objects by local rank, none for a command.

    They are private to torchelastic; `multiprocessing.active_children()` leaves out those that have ended already.
    """
    started = context._pc if isinstance(context, MultiprocessContext) else None
    return dict(enumerate(started.processes)) if started is not None else {}


def exit_codes_of(context: PContext | None) -> dict[int, int | None]:
    """Exit codes by local rank, from the same private places."""
    if isinstance(context, SubprocessContext):
        return {local_rank: handler.proc.poll() for local_rank, handler in context.subprocess_handlers.items()}
    return {local_rank: process.exitcode for local_rank, process in processes_of(context).items()}


def silence_torchelastic() -> None:
    """Every one of its loggers has a level of its own."""
    if logging.getLogger().isEnabledFor(logging.INFO):
        return
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(_SILENCED):
            logging.getLogger(name).setLevel(logging.CRITICAL)
