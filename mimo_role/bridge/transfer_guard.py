"""What a rank does about transfers of data that it is blocked in, and that will not end.

Waiting for gloo cannot be interrupted. So a thread, the guard, handles frames while its rank is blocked in a transfer for
longer than a moment. When it learns that the data will not come, it asks the peers to complete the transfers with any data;
the rank then raises what the guard has found.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from mimo_role.bridge import frames
from mimo_role.bridge.wait_cycles import Awaited

_LOOK_S = 0.1


@dataclass(slots=True)
class WaitState:
    """How far a wait has come."""

    began: float = field(default_factory=time.monotonic)
    """In seconds, by the monotonic clock."""
    is_announced: bool = False
    """Whether those that are waited for have been told."""


class Posted(NamedTuple):
    """A message of data that has been posted."""

    work: dist.Work
    tensor: torch.Tensor
    peer: int
    tag: int
    is_send: bool


@dataclass(slots=True)
class Transferring:
    """Messages that a rank waits for."""

    messages: Sequence[Posted]
    missing: Callable[[], Sequence[Awaited]]
    """The headers or receipts without which they need not end."""
    describe: Callable[[], str]
    """For messages."""
    wait_state: WaitState = field(default_factory=WaitState)
    is_released: bool = False

    def by_peer(self) -> dict[int, list[tuple[int, int, bool]]]:
        """Tags and bytes of the messages, and whether this rank sends them."""
        transfers = defaultdict(list)
        for message in self.messages:
            transfers[message.peer].append((message.tag, message.tensor.nbytes, message.is_send))
        return transfers


class TransferGuard:
    """A thread that looks at what its rank is blocked in."""

    def __init__(self, look: "Callable[[Transferring | None], Transferring | None]") -> None:
        """`look` gets what it returned the last time."""
        self._look = look
        self._is_closed = threading.Event()
        threading.Thread(target=self._run, name="mimo-launch transfers", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()

    def _run(self) -> None:
        seen = None
        while not self._is_closed.wait(_LOOK_S):
            seen = self._look(seen)


def complete_transfers(peer: int, content: bytes) -> list[tuple[torch.Tensor, "dist.Work | None"]]:
    """Complete the transfers that a peer is blocked in, with any data: it has failed and uses none.

    Returns:
        The data and works, which are to be kept until they have ended.
    """
    completing = []
    for tag, size, is_send in frames.transfers_of(content):
        data = torch.empty(size, dtype=torch.uint8)
        with suppress(RuntimeError):  # the peer has gone
            completing.append((data, (dist.irecv if is_send else dist.isend)(data, peer, tag=tag)))
    return completing
