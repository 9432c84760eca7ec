"""Node 0's store: started there, reached from the other nodes."""

import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from launcher.coordination.node_identity import Endpoint
from launcher.errors import LaunchError
from mimo_role.host import network

logger = logging.getLogger(__name__)

SAY_AFTER_S = 5.0
"""How long nodes wait for each other before they say so."""
_GREETING_S = 20.0


@dataclass(frozen=True)
class Reached:
    """A store, and the address of its host as this node reaches it."""

    store: TCPStore
    address: str


def serve(endpoint: Endpoint) -> Reached:
    """Start the store on this machine.

    Raises:
        LaunchError: the port is taken.
    """
    own = [address for address in network.addresses_of(endpoint.host) if network.is_local(address)]
    # Last a loopback address: a host may have one under its own name beside the one that others see.
    address = min(own, key=network.is_loopback)
    try:
        return Reached(TCPStore(endpoint.host, endpoint.port, is_master=True, wait_for_workers=False), address)
    except (DistError, RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise LaunchError(
                f"port {endpoint.port} is taken on {socket.gethostname()}; "
                f"give all nodes another one with --rdzv-endpoint {endpoint.host}:PORT"
            ) from None
        raise LaunchError(f"{endpoint}: {str(error).splitlines()[0]}") from None


def connect(endpoint: Endpoint, name: str, timeout_s: float) -> Reached:
    """Wait for the store of node 0, whose name in the plan is `name`.

    Raises:
        LaunchError: nothing answers in time, or what answers is no store.
    """
    began = time.monotonic()
    said = False
    while True:
        waited = time.monotonic() - began
        try:
            # torch's own client writes a warning for every attempt.
            patience = max(0.1, min(5.0, timeout_s - waited))
            with socket.create_connection((endpoint.host, endpoint.port), timeout=patience) as found:
                address = str(found.getpeername()[0])
            break
        except OSError as error:
            if waited > timeout_s:
                raise LaunchError(
                    f"{name} does not answer at {endpoint} after {timeout_s:g} s ({error}); "
                    "is mimo-launch running there with --node-rank 0, and does a firewall let the port through?"
                ) from None
            if not said and waited > SAY_AFTER_S:
                logger.warning("waiting for %s at %s, up to %g s, runtime.timeout_s (%s)", name, endpoint, timeout_s, error)
                said = True
            time.sleep(0.2)
    return Reached(_greet(endpoint, name, timeout_s - waited), address)


def _greet(endpoint: Endpoint, name: str, patience_s: float) -> TCPStore:
    """Connect. In a thread of its own: torch waits without limit for the greeting of what is not a store."""
    made: list[TCPStore] = []

    def greet() -> None:
        with suppress(DistError, RuntimeError, ValueError):
            made.append(TCPStore(endpoint.host, endpoint.port, wait_for_workers=False))

    thread = threading.Thread(target=greet, name="mimo-launch connect", daemon=True)
    thread.start()
    thread.join(timeout=min(_GREETING_S, max(1.0, patience_s)))
    if not made:
        raise LaunchError(
            f"{endpoint} answers, but not as mimo-launch does: does another program have this port on {name}'s host?"
        )
    return made[0]
