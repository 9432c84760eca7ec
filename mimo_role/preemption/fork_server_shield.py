"""Ignores notices in multiprocessing's fork server, which imports this module before it starts the first worker.

The import alone has this effect; `notice.shield_fork_server` requests it. Workers begin with the handlers that the server had.
"""

import os
import signal

from mimo_role.preemption.notice import SIGNALS

_server = os.getpid()
_replaced = {number: signal.signal(number, signal.SIG_IGN) for number in SIGNALS}


def _restore() -> None:
    if os.getppid() == _server:  # not in what a worker forks
        for number, handler in _replaced.items():
            signal.signal(number, handler)


os.register_at_fork(after_in_child=_restore)
