"""The headers of batches in a rehearsal.

A rank gets the header that it expects, except for what the other side has been seen to send when it was rehearsed: form and
dtype of the activations, step and micro-batch, and whether gradients come back. The bridge compares both as in a real run.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from mimo_role.bridge import frames
from mimo_role.bridge.activation_spec import SPEC_NUMBERS
from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.expected_batch import Expected
from mimo_role.bridge.frames import PREFIX, BatchHeader, BatchKey, FrameKind
from mimo_role.bridge.sent_batches import Sent
from mimo_role.rehearsal.links import RehearsalLinks

_AGREED_BYTES = 8 * (SPEC_NUMBERS + 1)
"""The part of a description that is the same between all ranks of a bridge: the spec, and a checksum of splits and lanes."""
_REMEMBERED = 4096

Headers = dict[BatchKey, BatchHeader]


class RehearsalLedger(BatchLedger):
    """A ledger whose peers send what this rank expects, or what they were seen to send."""

    seen: ClassVar[Mapping[BatchKey, BatchHeader]] = {}
    """What ranks that were rehearsed earlier have sent."""
    sent: ClassVar[Headers] = {}
    """What this rank sends: the first batches."""

    def __init__(self, links: RehearsalLinks, timeout_s: float, **settings: Any) -> None:
        super().__init__(links, timeout_s, **settings)
        self._frames = links

    def expect(self, expected: Expected) -> None:
        """As in a real run; the header arrives at once."""
        super().expect(expected)
        header = expected.wanted
        other = self.seen.get(header.key)
        if other is not None:
            description = other.description[:_AGREED_BYTES] + header.description[_AGREED_BYTES:]
            header = header._replace(description=description, position=other.position, returns=other.returns)
        self._frames.arrive(expected.peer, FrameKind.BATCH, header.content())

    def spec_arrives(self, peer: int, bridge: int, number: int, values: list[int]) -> None:
        """A peer's description of a batch arrives, before this rank waits for it."""
        self._frames.arrive(peer, FrameKind.SPEC, frames.spec(bridge, number, values)[PREFIX.size :])

    def send(self, peer: int, header: BatchHeader, sent: Sent | None) -> None:
        """As in a real run; the header is remembered for the other side's rehearsal."""
        if len(self.sent) < _REMEMBERED:
            self.sent.setdefault(header.key, header)
        super().send(peer, header, sent)
