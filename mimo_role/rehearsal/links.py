"""Frames of peers that do not exist: they receive what is sent to them, and leave when this rank does."""

import time
from collections import deque
from collections.abc import Callable, Iterable

from mimo_role.bridge import frames
from mimo_role.bridge.departure import PHASES
from mimo_role.bridge.frames import PREFIX, BatchHeader, FrameKind


class RehearsalLinks:
    """The `Links` of a rehearsal."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lost: set[int] = set()
        self._handlers: dict[int, Callable[[int, bytes], None]] = {}
        self._arrived: deque[tuple[int, int, bytes]] = deque()
        """Peer, kind and content of each frame."""

    def on(self, kind: FrameKind, handler: Callable[[int, bytes], None]) -> None:
        """Call `handler(peer, content)` for each frame of a kind."""
        self._handlers[kind] = handler

    def arrive(self, peer: int, kind: FrameKind, content: bytes) -> None:
        """A frame of a peer has arrived; it is handled later."""
        self._arrived.append((peer, kind, content))

    def send(self, peer: int, frame: bytes) -> None:
        """Answer as the peer does once it has received the frames."""
        at = 0
        while at < len(frame):
            length, kind = PREFIX.unpack_from(frame, at)
            at += PREFIX.size + length
            self._answer(peer, kind, frame[at - length : at])

    def _answer(self, peer: int, kind: int, content: bytes) -> None:
        if kind == FrameKind.BATCH:
            header = BatchHeader.unpacked(content)
            if header.is_kept:
                self.arrive(peer, FrameKind.TAKEN, frames.taken(header.key)[PREFIX.size :])
        elif kind == FrameKind.LEAVING:
            self.arrive(peer, FrameKind.LEAVING, b"")
            for _ in range(PHASES):
                self.arrive(peer, FrameKind.DONE, b"")

    def peers(self) -> Iterable[int]:
        """None: the ledger knows the peers of its bridges."""
        return ()

    def ready(self, timeout_s: float) -> list[int]:
        """Whether frames have arrived. All that will come has arrived already: waiting only spends the time."""
        if not self._arrived:
            time.sleep(timeout_s)
        return [0] if self._arrived else []

    def handle(self, ready: Iterable[int]) -> None:
        """Handle the frames that have arrived."""
        del ready
        while self._arrived:
            self._handle(*self._arrived.popleft())

    def receive_from(self, peer: int) -> None:
        """Handle the frames that have arrived from one peer."""
        found = [item for item in self._arrived if item[0] == peer]
        self._arrived = deque(item for item in self._arrived if item[0] != peer)
        for item in found:
            self._handle(*item)

    def close(self) -> None:
        """Forget what has arrived."""
        self._arrived.clear()

    def _handle(self, peer: int, kind: int, content: bytes) -> None:
        self._handlers[kind](peer, content)
