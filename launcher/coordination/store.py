"""The store that the agents of several nodes share: one TCPStore, on node 0's host."""

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from launcher.coordination.node_identity import Endpoint
from launcher.errors import LaunchError
from mimo_role.host import network

logger = logging.getLogger(__name__)

WAITING_MESSAGE_AFTER_S = 5.0
"""How long nodes wait for each other before they print it."""
_HANDSHAKE_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_POLL_S = 0.02

T = TypeVar("T")


class Store:
    """One agent's connection to the store. Any thread may use it; its methods return soon, even if node 0 is lost."""

    def __init__(self, tcp: TCPStore, address: str, owner: str, node: int, nodes: int) -> None:
        """
        Args:
            tcp: torch's store. Its own calls raise DistError, and block while the network to node 0 is down.
            address: node 0's, as this node reaches it.
            owner: node 0 as messages name it: `node0 at alpha:29500`.
            node: this node's index.
            nodes: the number of nodes.
        """
        self.tcp = tcp
        self.address = address
        self.owner = owner
        self.node = node
        self.nodes = nodes
        self.is_lost = False
        """Whether node 0 is considered lost; then the store is no longer asked."""

    def ask(self, question: Callable[[], T]) -> T | None:
        """What a call of the store returns; `None` if node 0 does not answer."""
        answers: list[T] = []

        def ask() -> None:
            with suppress(DistError):
                answers.append(question())

        if not self.is_lost:
            thread = threading.Thread(target=ask, name="mimo-launch question", daemon=True)
            thread.start()
            thread.join(timeout=_ANSWER_TIMEOUT_S)
        return answers[0] if answers else None

    def put(self, key: str, value: Any) -> None:
        """Write a JSON value."""
        self.ask(lambda: self.tcp.set(key, json.dumps(value)))

    def find(self, key: str) -> Any | None:
        """Read a JSON value, without waiting for one; `None` if there is none."""
        found = self.ask(lambda: self.tcp.get(key) if self.tcp.check([key]) else None)
        return json.loads(found) if found is not None else None

    def has(self, key: str) -> bool | None:
        """Whether there is a value; `None` if node 0 does not answer."""
        return self.ask(lambda: self.tcp.check([key]))

    def count(self, key: str, more: int) -> int:
        """Add to a number that all nodes share, and return it; 0 if node 0 does not answer."""
        return self.ask(lambda: self.tcp.add(key, more)) or 0

    def post(self, name: str, value: Any) -> None:
        """Write this node's part of something that node 0 gathers."""
        self.put(f"{name}/{self.node}", value)

    def gather(self, name: str, timeout_s: float) -> list[Any]:
        """On node 0: what the nodes have posted, in their order; without those that post nothing in time."""
        keys = missing = [f"{name}/{node}" for node in range(self.nodes)]
        deadline = time.monotonic() + timeout_s
        while (missing := [key for key in missing if not self.tcp.check([key])]) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return [json.loads(self.tcp.get(key)) for key in keys if key not in missing]


class LocalStore:
    """The same for a job on one node: values in this process."""

    is_lost = False

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def put(self, key: str, value: Any) -> None:
        """Write a value."""
        self._values[key] = value

    def find(self, key: str) -> Any | None:
        """Read a value; `None` if there is none."""
        return self._values.get(key)

    def count(self, key: str, more: int) -> int:
        """Add to a number, and return it."""
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + more
            return self._counts[key]

    def post(self, name: str, value: Any) -> None:
        """Write the only node's part of something that is gathered."""
        self._values[name] = value

    def gather(self, name: str, timeout_s: float) -> list[Any]:  # noqa: ARG002 (there is no other node to wait for)
        """What the only node has posted."""
        return [self._values[name]] if name in self._values else []


def serve(endpoint: Endpoint, name: str, nodes: int) -> Store:
    """Start the store, on node 0, whose name in the plan is `name`.

    Raises:
        LaunchError: the port is taken.
    """
    own = [address for address in network.addresses_of(endpoint.host) if network.is_local(address)]
    # Loopback addresses last: a host's own name may also have one, beside the address that other hosts use.
    address = min(own, key=network.is_loopback)
    try:
        tcp = TCPStore(endpoint.host, endpoint.port, is_master=True, wait_for_workers=False)
    except (DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise LaunchError(
                f"port {endpoint.port} is taken on {socket.gethostname()}; "
                f"give all nodes another one with --rdzv-endpoint {endpoint.host}:PORT"
            ) from None
        raise LaunchError(f"{endpoint}: {str(error).splitlines()[0]}") from None
    return Store(tcp, address, f"{name} at {endpoint}", node=0, nodes=nodes)


def connect(endpoint: Endpoint, name: str, timeout_s: float, *, node: int, nodes: int) -> Store:
    """Connect to the store of node 0, whose name in the plan is `name`; wait until it is there.

    Raises:
        LaunchError: node 0 does not answer in time, or another program answers.
    """
    began = time.monotonic()
    address = _wait_for_host(endpoint, name, timeout_s)
    tcp = _handshake(endpoint, name, timeout_s - (time.monotonic() - began))
    return Store(tcp, address, f"{name} at {endpoint}", node=node, nodes=nodes)


def _wait_for_host(endpoint: Endpoint, name: str, timeout_s: float) -> str:
    """Node 0's address, as soon as it accepts connections."""
    began = time.monotonic()
    is_logged = False
    while True:
        waited = time.monotonic() - began
        try:
            # Not torch's own client, which logs a warning for every try.
            with socket.create_connection((endpoint.host, endpoint.port), max(0.1, min(5.0, timeout_s - waited))) as found:
                return str(found.getpeername()[0])
        except OSError as error:
            if waited > timeout_s:
                raise LaunchError(
                    f"{name} does not answer at {endpoint} after {timeout_s:g} s ({error}); "
                    "is mimo-launch running there with --node-rank 0, and does a firewall let the port through?"
                ) from None
            if not is_logged and waited > WAITING_MESSAGE_AFTER_S:
                logger.warning("waiting for %s at %s, up to %g s, runtime.timeout_s (%s)", name, endpoint, timeout_s, error)
                is_logged = True
            time.sleep(0.2)


def _handshake(endpoint: Endpoint, name: str, timeout_s: float) -> TCPStore:
    """Connect torch's client. In a thread: it waits without limit for an answer of what is not a store."""
    connected: list[TCPStore] = []

    def open_store() -> None:
        with suppress(DistError, RuntimeError, ValueError):
            connected.append(TCPStore(endpoint.host, endpoint.port, wait_for_workers=False))

    thread = threading.Thread(target=open_store, name="mimo-launch connect", daemon=True)
    thread.start()
    thread.join(timeout=min(_HANDSHAKE_TIMEOUT_S, max(1.0, timeout_s)))
    if not connected:
        raise LaunchError(
            f"{endpoint} answers, but not as mimo-launch does: does another program have this port on {name}'s host?"
        )
    return connected[0]
