"""What the nodes send to node 0 again and again, such as the times of their ranks' steps. Nobody waits for anybody."""

import json
from collections import deque
from functools import partial
from typing import Any

from launcher.coordination.store import Store

REPORT_INTERVAL_S = 1.0
"""Seconds between two reports of a node, of few nodes."""
_REPORTS_PER_S = 100
"""How many a second node 0 reads, of all nodes together."""
_KEPT = 4
"""Reports of a node that node 0 has not read; when a further one comes, the oldest is dropped."""
_KEYS_AT_ONCE = 64
"""What is read from the store in one call: others may use the connection in between."""


def report_interval_s(nodes: int) -> float:
    """Seconds between two reports of a node."""
    return max(REPORT_INTERVAL_S, nodes / _REPORTS_PER_S)


class Reports:
    """One agent's part.

    In the store, `report/I` has the latest reports of node I, with the number of the first, and `report/I/read` how many node 0
    has read.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[Any] = deque()
        """Of this node, not known to be read."""
        self._first = 0
        """The number of the first of them."""
        self._read = [0] * store.nodes
        """On node 0: how many were read, by node."""

    def open(self) -> None:
        """Make this node's keys, before the nodes meet.

        Raises:
            DistError: node 0 is lost.
        """
        node = self._store.node
        self._set({_key(node): json.dumps([0, []]), _read_key(node): "0"})

    def send(self, report: Any) -> None:
        """Send a JSON value to node 0. It is lost if node 0 does not read for too long."""
        self._waiting.append(report)
        if self._store.node == 0:
            return
        tcp, node = self._store.tcp, self._store.node
        read = self._store.ask(lambda: int(tcp.get(_read_key(node))))
        while self._waiting and (self._first < (read or 0) or len(self._waiting) > _KEPT):
            self._waiting.popleft()
            self._first += 1
        text = json.dumps([self._first, list(self._waiting)], separators=(",", ":"))
        self._store.ask(lambda: tcp.set(_key(node), text))

    def collect(self) -> list[Any]:
        """On node 0: the reports that were not read yet, of each node in their order."""
        own = _taken(self._waiting)
        others = range(1, self._store.nodes)
        for at in range(0, len(others), _KEYS_AT_ONCE):
            nodes = others[at : at + _KEYS_AT_ONCE]
            own += self._store.ask(partial(self._collect, nodes)) or []
        return own

    def _collect(self, nodes: range) -> list[Any]:
        found: list[Any] = []
        changed: list[int] = []
        for node, text in zip(nodes, self._store.tcp.multi_get([_key(node) for node in nodes]), strict=True):
            first, reports = json.loads(text)
            new = reports[max(0, self._read[node] - first) :]
            if new:
                self._read[node] = first + len(reports)
                found += new
                changed.append(node)
        if changed:
            self._set({_read_key(node): str(self._read[node]) for node in changed})
        return found

    def _set(self, values: dict[str, str]) -> None:
        self._store.tcp.multi_set(list(values), list(values.values()))  # type: ignore[attr-defined]


class LocalReports:
    """The same for a job on one node, whose store is this process."""

    def __init__(self) -> None:
        self._waiting: deque[Any] = deque()

    def send(self, report: Any) -> None:
        """Keep a value until it is collected."""
        self._waiting.append(report)

    def collect(self) -> list[Any]:
        """What was sent since the last call."""
        return _taken(self._waiting)


def _taken(waiting: deque[Any]) -> list[Any]:
    """Remove what is there, oldest first. Another thread may add more at the same time."""
    return [waiting.popleft() for _ in range(len(waiting))]


def _key(node: int) -> str:
    return f"report/{node}"


def _read_key(node: int) -> str:
    return f"report/{node}/read"
