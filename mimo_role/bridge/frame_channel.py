"""This rank's frames to and from its peers, handled by one thread at a time."""

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from mimo_role.bridge import frames
from mimo_role.bridge.frames import BatchKey, FrameKind
from mimo_role.bridge.peer_links import Links
from mimo_role.errors import BridgeError


class FrameChannel:
    """Sends frames, together with pending receipts, and handles those that arrive."""

    def __init__(self, links: Links) -> None:
        self.rank = links.rank
        self.lock = threading.RLock()
        """Held by the thread that handles frames: the rank's own, or the guard's while that one is blocked."""
        self._links = links
        self._bridged: set[int] = set()
        self._receipts: dict[int, bytearray] = {}
        """Receipts to be sent with the next frame to a peer."""
        self.polled_at = time.monotonic()
        """When frames were last handled, in seconds by the monotonic clock."""

    def on(self, kind: FrameKind, handler: Callable[[int, bytes], None]) -> None:
        """Call `handler(peer, content)` for each frame of a kind, with `lock` held."""
        self._links.on(kind, handler)

    def add_peers(self, peers: Iterable[int]) -> None:
        """Add ranks with which a bridge may exchange batches."""
        self._bridged.update(peers)

    def peers(self) -> set[int]:
        """The ranks at the other ends of bridges, used or not, and those with which frames have been exchanged."""
        return {*self._links.peers(), *self._bridged}

    def is_lost(self, peer: int) -> bool:
        """Whether the connection to a peer was closed: the peer has exited or died."""
        return peer in self._links.lost

    def acknowledge(self, peer: int, key: BatchKey) -> None:
        """Send the receipt of a batch, with the next frame to the peer or soon."""
        with self.lock:
            receipts = self._receipts.setdefault(peer, bytearray())
            receipts += frames.taken(key)

    def send(self, peer: int, frame: bytes) -> None:
        """Send a frame without waiting. A frame to a peer that has exited is dropped.

        Raises:
            BridgeError: the peer's host cannot be reached.
        """
        with self.lock:
            if (receipts := self._receipts.pop(peer, None)) is not None:
                frame = bytes(receipts) + frame
            self._links.send(peer, frame)

    def send_receipts(self) -> None:
        """Send all receipts that are pending."""
        if self._receipts:
            with self.lock:
                for peer in list(self._receipts):
                    self.send(peer, b"")

    def broadcast(self, frame: bytes) -> None:
        """Send a frame to all peers that can be reached."""
        for peer in self.peers():
            with suppress(BridgeError):
                self.send(peer, frame)

    def poll(self, timeout_s: float, is_needed: Callable[[], bool] = lambda: True) -> bool:
        """Handle the frames that have arrived. With a timeout, wait for the first.

        Args:
            timeout_s: in seconds; 0 does not wait.
            is_needed: checked with the lock held; if false, the frames are left to the other thread.

        Returns:
            Whether any frames had arrived.
        """
        ready = self._links.ready(timeout_s)
        with self.lock:
            if is_needed():
                self._links.handle(ready)
                self.polled_at = time.monotonic()
        return bool(ready)

    def receive_from(self, peer: int) -> None:
        """Handle the frames that have arrived from one peer."""
        with self.lock:
            self._links.receive_from(peer)

    def reset_lock(self) -> None:
        """Make a new lock, in a forked process in which the thread that held it does not exist."""
        self.lock = threading.RLock()

    def close(self) -> None:
        """Close all connections."""
        with self.lock:
            self._links.close()
