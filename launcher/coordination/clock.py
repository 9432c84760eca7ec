"""Measures how far this node's clock is from node 0's, over the store.

In the store, `clock/count` is the number of questions, `clock/question/N` exists once one was asked, and `clock/answer/N` has
node 0's times.
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError, DistStoreError, TCPStore  # type: ignore[attr-defined]

from launcher.coordination.clock_offset import ClockOffset, Exchange

_EXCHANGES = 8
_TIMEOUT_S = 2.0
_PATIENCE_S = 0.5
"""How long to wait for a question before looking whether it is missing: less than half of what one waits for its answer."""
_STOP = "stop"

Now = Callable[[], int]


class ClockServer:
    """On node 0: a thread that answers the questions of all nodes, on a connection of its own, since it waits for them."""

    def __init__(self, store: TCPStore, now_ns: Now = time.monotonic_ns) -> None:
        self._store = store
        self._now_ns = now_ns
        self._thread = threading.Thread(target=self._serve, name="mimo-launch clock", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread. The store must still be there."""
        with suppress(DistError):
            _ask(self._store, _STOP)
        self._thread.join(timeout=_TIMEOUT_S)

    def _serve(self) -> None:
        number = 0
        with suppress(DistError):
            store = _connect(self._store, timedelta(seconds=_PATIENCE_S))
            while True:
                try:
                    question = store.get(f"clock/question/{number}").decode()
                except DistStoreError:  # none yet; or an agent died between numbering one and asking it
                    number += store.add("clock/count", 0) > number + 1
                    continue
                received_ns = self._now_ns()
                if question == _STOP:
                    return
                store.delete_key(f"clock/question/{number}")
                store.set(f"clock/answer/{number}", json.dumps([received_ns, self._now_ns()]))
                number += 1


def measure(store: TCPStore, now_ns: Now = time.monotonic_ns) -> ClockOffset | None:
    """The offset of this node's clock; `None` if node 0 does not answer in time."""
    found: list[Exchange] = []

    def ask() -> None:
        with suppress(DistError):
            own = _connect(store, timedelta(seconds=_TIMEOUT_S))
            found.extend(_exchange(own, now_ns) for _ in range(_EXCHANGES))

    thread = threading.Thread(target=ask, name="mimo-launch clock", daemon=True)
    thread.start()
    thread.join(timeout=2 * _TIMEOUT_S)
    return ClockOffset.of(found) if found else None


def _exchange(store: TCPStore, now_ns: Now) -> Exchange:
    sent_ns, number = now_ns(), _ask(store, "")
    answer = store.get(f"clock/answer/{number}")
    arrived_ns = now_ns()
    store.delete_key(f"clock/answer/{number}")
    received_ns, answered_ns = json.loads(answer)
    return Exchange(sent_ns, received_ns, answered_ns, arrived_ns)


def _ask(store: TCPStore, question: str) -> int:
    number: int = store.add("clock/count", 1) - 1
    store.set(f"clock/question/{number}", question)
    return number


def _connect(store: TCPStore, timeout: timedelta) -> TCPStore:
    """Another connection to the same server: a call that waits blocks the others on its connection."""
    return TCPStore(store.host, store.port, wait_for_workers=False, timeout=timeout)
