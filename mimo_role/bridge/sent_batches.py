"""The batches that this rank has sent, and their receipts."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from mimo_role.bridge import frames
from mimo_role.bridge.frames import BatchKey, Want
from mimo_role.bridge.wait_cycles import Awaited

_REMEMBERED = 1 << 14
"""Sent batches that are remembered, to recognize reports of waits that have ended since."""


class Sent(Protocol):
    """A batch on its way to its receivers."""

    def was_taken(self, peer: int) -> None:
        """A peer has received its part."""

    def describe(self, peer: int, key: BatchKey) -> str:
        """What was sent to a peer, for messages."""


class SentBatches:
    """Keeps the data of batches until their receipts arrive."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, BatchKey], Sent] = {}
        """Batches without a receipt. Each keeps the tensors that are being sent."""
        self._receipts: set[tuple[int, BatchKey]] = set()
        """Receipts of data that is not kept, which a blocked rank has requested."""
        self._recent: OrderedDict[tuple[int, BatchKey], None] = OrderedDict()

    def __len__(self) -> int:
        """Batches without a receipt."""
        return len(self._kept)

    def add(self, peer: int, key: BatchKey, kept: Sent | None = None) -> None:
        """Note that a batch is sent to a peer; `kept` until the peer has its data."""
        item = peer, key
        if kept is not None:
            self._kept[item] = kept
        self._recent[item] = None
        if len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)

    def was_sent(self, peer: int, key: BatchKey) -> bool:
        """Whether a batch has been sent to a peer lately."""
        return (peer, key) in self._recent

    def is_kept(self, peer: int, key: BatchKey) -> bool:
        """Whether a batch is kept until its receipt arrives."""
        return (peer, key) in self._kept

    def receipt_came(self, peer: int, content: bytes) -> None:
        """Handle the content of a receipt's frame."""
        key = frames.key_of(content)
        if (sent := self._kept.pop((peer, key), None)) is not None:
            sent.was_taken(peer)
        else:
            self._receipts.add((peer, key))

    def awaited_receipts(self, bridge: int | None = None) -> list[Awaited]:
        """The receipts of kept batches that have not arrived, of all bridges or of one."""
        items = list(self._kept.items())
        return [AwaitedReceipt(*item, sent) for item, sent in items if bridge in (None, item[1].bridge)]

    def without_receipt(self, sent: Sent, keys: Iterable[tuple[int, BatchKey]]) -> list[Awaited]:
        """The receipts of one batch that have not arrived. Those of data that is not kept are only sent during a long wait."""
        return [AwaitedReceipt(*item, sent) for item in keys if item not in self._receipts]

    def forget_requested_receipts(self) -> None:
        """The wait for which receipts were requested has ended."""
        self._receipts.clear()

    def clear(self) -> None:
        """Release all data."""
        self._kept.clear()


@dataclass(frozen=True)
class AwaitedReceipt:
    """A receipt that has not arrived."""

    peer: int
    key: BatchKey
    sent: Sent

    @property
    def want(self) -> Want:
        """From which peer, and of which batch."""
        return Want(self.peer, self.key, is_receipt=True)

    def describe(self) -> str:
        """For messages."""
        return self.sent.describe(self.peer, self.key)
