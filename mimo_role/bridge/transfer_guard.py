"""Ends transfers of data that cannot complete.

Waiting for gloo cannot be interrupted. So a thread, the guard, handles frames while its rank is blocked in a transfer for
longer than a moment. When it finds that the data will not come, it asks the peers to complete the transfers with any data;
the rank then raises the error that the guard has found.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from mimo_role.bridge import frames
from mimo_role.bridge.frame_channel import FrameChannel
from mimo_role.bridge.frames import FrameKind
from mimo_role.bridge.wait_cycles import Awaited
from mimo_role.errors import BridgeError

_POLL_S = 0.1


@dataclass(slots=True)
class WaitState:
    """Progress of one wait."""

    began: float = field(default_factory=time.monotonic)
    """In seconds, by the monotonic clock."""
    is_announced: bool = False
    """Whether it has been reported to the ranks that are waited for."""


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
    """The headers or receipts without which they need not complete."""
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
    """Waits for data, and has a thread that handles frames meanwhile."""

    def __init__(self, channel: FrameChannel, check: Callable[[Sequence[Awaited], WaitState], None]) -> None:
        """
        Args:
            channel: this rank's frames.
            check: raises a `BridgeError` if what is awaited will not come.
        """
        self._channel = channel
        self._check = check
        self._blocked: Transferring | None = None
        self._kept: list[object] = []
        """Messages that nobody waits for: gloo would drop one that is freed before it has been transferred."""
        self._is_closed = threading.Event()
        self._thread: threading.Thread | None = None
        channel.on(FrameKind.RELEASE, lambda peer, content: self._kept.extend(complete_transfers(peer, content)))

    def wait(self, transferring: Transferring) -> None:
        """Wait for messages of data.

        Raises:
            RuntimeError: a message could not be transferred.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="mimo-launch transfers", daemon=True)
            self._thread.start()
        self._blocked = transferring
        try:
            for message in transferring.messages:
                message.work.wait()
        except BaseException:
            self.keep(transferring.messages)
            raise
        finally:
            with self._channel.lock:  # the guard may be handling frames
                self._blocked = None

    def keep(self, posted: Iterable[Posted]) -> None:
        """Keep messages until `close()`. After it they would keep gloo's connections open, whose end releases the peers."""
        if not self._is_closed.is_set():
            self._kept.extend(posted)

    def close(self) -> None:
        """End the thread."""
        self._is_closed.set()
        self._kept.clear()

    def _run(self) -> None:
        seen = None
        while not self._is_closed.wait(_POLL_S):
            seen = self._look_after(seen)

    def _look_after(self, seen: Transferring | None) -> Transferring | None:
        """If the rank is still in the transfer that was `seen` before, handle its frames and check the transfer.

        Returns:
            The transfer in which the rank is now.
        """
        blocked = self._blocked
        if blocked is None or blocked is not seen:
            self._channel.send_receipts()
            return blocked
        self._channel.poll(_POLL_S, lambda: self._blocked is blocked)
        with self._channel.lock:
            if self._blocked is not blocked:
                return self._blocked
            self._channel.send_receipts()
            try:
                self._check(blocked.missing(), blocked.wait_state)
            except BridgeError:
                if not blocked.is_released:
                    blocked.is_released = True
                    for peer, transfers in blocked.by_peer().items():
                        self._channel.send(peer, frames.release(transfers))
        return blocked


def complete_transfers(peer: int, content: bytes) -> list[tuple[torch.Tensor, "dist.Work | None"]]:
    """Complete the transfers in which a failed peer is blocked, with any data, since the peer uses none.

    Returns:
        The data and works, which are to be kept until they have completed.
    """
    completing = []
    for tag, size, is_send in frames.transfers_of(content):
        data = torch.empty(size, dtype=torch.uint8)
        with suppress(RuntimeError):  # the peer has exited
            completing.append((data, (dist.irecv if is_send else dist.isend)(data, peer, tag=tag)))
    return completing
