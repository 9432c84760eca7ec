"""How ranks leave the job together, so that a failure still reaches those that depend on each other."""

import time
from collections import Counter

from mimo_role.bridge import frames
from mimo_role.bridge.frame_channel import FrameChannel
from mimo_role.bridge.frames import FrameKind

_TIMEOUT_S = 5.0
"""How long a rank that leaves waits for its peers to leave too."""
_POLL_S = 0.1
PHASES = 8
"""A rank completes a phase when all its peers have completed the one before, so a failure reaches ranks that many hops away."""


class Departure:
    """The peers that have left the job, and how this rank leaves it."""

    def __init__(self, channel: FrameChannel) -> None:
        self._channel = channel
        self._left: set[int] = set()
        self._completed: Counter[int] = Counter()
        """By peer, the number of phases that it has completed."""
        channel.on(FrameKind.LEAVING, lambda peer, _: self._left.add(peer))
        channel.on(FrameKind.DONE, lambda peer, _: self._completed.update((peer,)))

    def has_left(self, peer: int) -> bool:
        """Whether a peer has called `leave()`."""
        return peer in self._left

    def is_gone(self, peer: int) -> bool:
        """Whether a peer has left, exited or died."""
        return peer in self._left or self._channel.is_lost(peer)

    def reason(self, peer: int, awaited: str) -> str:
        """The message for something that a peer that is gone will not send."""
        if peer in self._left:
            return f"{awaited}, but that rank has left the job: its script has ended, or called mimo_role.shutdown()"
        return f"{awaited}, but that rank has exited or died: connection closed by peer"

    def leave(self) -> None:
        """Tell all peers, and handle frames for a few seconds at most until all peers have left, and their peers, and so on.

        One of them may be blocked in a transfer with this rank, or still have to report a failure.
        """
        self._channel.broadcast(frames.leaving())
        deadline = time.monotonic() + _TIMEOUT_S
        for phase in range(PHASES):
            while not all(self._has_completed(peer, phase) for peer in self._channel.peers()) and time.monotonic() < deadline:
                self._channel.poll(_POLL_S)
            self._channel.broadcast(frames.done())

    def _has_completed(self, peer: int, phases: int) -> bool:
        return self._channel.is_lost(peer) or (peer in self._left and self._completed[peer] >= phases)
