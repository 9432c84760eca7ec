"""What the agents put up for each other, on node 0's store: one reads what another has written, and does not wait for it."""

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

_ANSWER_S = 10.0
_LOOK_S = 0.02

T = TypeVar("T")


class Board:
    """One agent's view of it. Any thread may use it; none waits for long if node 0 is gone."""

    def __init__(self, store: TCPStore, node: int, nodes: int) -> None:
        """`node` is this one's index among so many."""
        self._store = store
        self._node = node
        self._nodes = nodes
        self.is_lost = False
        """Whether node 0 is taken for dead; then nothing is asked any more."""

    def ask(self, question: Callable[[], T]) -> T | None:
        """What the store answers; `None` if it does not."""
        answers: list[T] = []

        def ask() -> None:
            with suppress(DistError):
                answers.append(question())

        if not self.is_lost:
            thread = threading.Thread(target=ask, name="mimo-launch question", daemon=True)
            thread.start()
            thread.join(timeout=_ANSWER_S)
        return answers[0] if answers else None

    def put(self, key: str, value: Any) -> None:
        """Put something up."""
        self.ask(lambda: self._store.set(key, json.dumps(value)))

    def find(self, key: str) -> Any | None:
        """What stands there; `None` if nothing does."""
        found = self.ask(lambda: self._store.get(key) if self._store.check([key]) else None)
        return json.loads(found) if found is not None else None

    def count(self, key: str, more: int) -> int:
        """Add to a number that all nodes share; return it, or 0 if node 0 does not answer."""
        return self.ask(lambda: self._store.add(key, more)) or 0

    def post(self, name: str, value: Any) -> None:
        """Put up what this node knows of something, for node 0 to gather."""
        self.put(f"{name}/{self._node}", value)

    def gather(self, name: str, timeout_s: float) -> list[Any]:
        """Node 0: what the nodes have posted of something, in their order; of those that do so in time."""
        keys = missing = [f"{name}/{node}" for node in range(self._nodes)]
        deadline = time.monotonic() + timeout_s
        while (missing := [key for key in missing if not self._store.check([key])]) and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        return [json.loads(self._store.get(key)) for key in keys if key not in missing]
