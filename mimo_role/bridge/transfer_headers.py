"""The headers of one transfer: those that this rank sends, and those that it expects."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.expected_batch import Expected
from mimo_role.bridge.frames import BatchHeader, BatchKey, Position, Returns
from mimo_role.bridge.local_end import LocalEnd
from mimo_role.bridge.message_tags import Purpose
from mimo_role.bridge.messages import Step
from mimo_role.bridge.sent_batches import Sent


class BatchId(NamedTuple):
    """The identity of a batch, in the terms of its headers."""

    bridge: int
    batch: int
    turn: int = 0
    position: Position = Position()
    returns: Returns = Returns.UNKNOWN

    def key(self, *, back: bool) -> BatchKey:
        """The batch in one direction."""
        return BatchKey(self.bridge, Purpose.BACK if back else Purpose.FORWARD, self.batch, self.turn)


class TransferHeaders:
    """Sends and expects the headers of one batch in one direction."""

    def __init__(
        self,
        end: LocalEnd,
        batch: BatchId,
        ledger: BatchLedger,
        handshake: tuple[Sequence[int], Sequence[int]],
        *,
        in_order: bool,
        is_kept: bool,
    ) -> None:
        """
        Args:
            end: this rank's end of the bridge.
            batch: the identity of the batch.
            ledger: matches headers and receipts.
            handshake: peers to which a header is sent, and from which one is expected, even if no data is.
            in_order: whether batches arrive in the order in which they are expected.
            is_kept: whether data is kept until its receipt arrives.
        """
        self.key = batch.key(back=end.back)
        self.expected: list[Expected] = []
        self.expected_from_replicas: list[Expected] = []
        self._end = end
        self._batch = batch
        self._ledger = ledger
        self._handshake = handshake
        self._in_order = in_order
        self._is_kept = is_kept

    @property
    def replica_key(self) -> BatchKey:
        """The batch, in what replicas exchange."""
        return self.key._replace(purpose=Purpose.BACK_AMONG_REPLICAS if self._end.back else Purpose.FORWARD_AMONG_REPLICAS)

    def expect(self) -> None:
        """Expect the headers of what is received over the bridge.

        Raises:
            BridgeError: another batch has come.
        """
        received_from = self._end.parts.received_from
        self.expected = [self._expect(peer, elements, self.key) for peer, elements in received_from.items()]
        if self._handshake[1]:
            self.expected += [self._expect(peer, 0, self.key) for peer in self._handshake[1] if peer not in received_from]

    def expect_from_replicas(self) -> None:
        """Expect the headers of what is received from replicas."""
        received_from = self._end.parts.replica_received_from
        self.expected_from_replicas = [
            self._expect(peer, elements, self.replica_key) for peer, elements in received_from.items()
        ]

    def send(self, sent: Sent) -> None:
        """Send the headers of what is sent over the bridge.

        Raises:
            BridgeError: a peer has left, exited or died.
        """
        for peer, elements in self._end.parts.sent_to.items():
            self._ledger.send(peer, self._header(self.key, elements, self._end.description_to(peer)), sent)
        for peer in self._handshake[0]:
            if peer not in self._end.parts.sent_to:
                self._ledger.send(peer, self._header(self.key, 0, self._end.description_to(peer)), sent)

    def send_to_replicas(self, sent: Sent) -> None:
        """Send the headers of what is sent to replicas."""
        for peer, elements in self._end.parts.replica_sent_to.items():
            self._ledger.send(peer, self._header(self.replica_key, elements, self._end.description_to(peer)), sent)

    def acknowledge(self) -> None:
        """Send the receipts of data that its senders keep."""
        for expected in self.expected:
            if expected.header is not None and expected.header.is_kept:
                self._ledger.acknowledge(expected.peer, self.key)

    def peers_with_zeros(self) -> set[int]:
        """The peers whose headers stand for zeros, without data."""
        return {expected.peer for expected in self.expected if expected.header is not None and expected.header.is_zero}

    def receive_earlier(self, peers: Iterable[int]) -> None:
        """Receive what some peers sent earlier with the same tags: gloo matches messages of equal tags in order of posting."""
        for expected in self.expected:
            if expected.peer in peers:
                for key in expected.earlier_alike:
                    if (receive_early := self._ledger.gradients.calls.get(key)) is not None:
                        receive_early(expected.peer)

    def describe(self, step: Step, peers: Iterable[int]) -> str:
        """What a step exchanges with some peers, for messages."""
        key = self.replica_key if step.is_among_replicas else self.key
        describe = self._end.describe_send if step.is_send else self._end.describe_receive
        return "; ".join(describe(peer, key, self._batch.position) for peer in dict.fromkeys(peers))

    def describe_sent(self, peer: int, key: BatchKey) -> str:
        """What was sent to a peer, for messages."""
        return self._end.describe_send(peer, key, self._batch.position)

    def _header(self, key: BatchKey, elements: int, description: bytes) -> BatchHeader:
        is_kept = self._is_kept and elements > 0 and key is self.key
        return BatchHeader(key, self._batch.position, self._batch.returns, False, is_kept, elements, description)

    def _expect(self, peer: int, elements: int, key: BatchKey) -> Expected:
        header = self._header(key, elements, self._end.description_from(peer))
        expected = Expected(peer, header, self._end, self._in_order)
        self._ledger.expect(expected)
        return expected


def send_zeros(end: LocalEnd, batch: BatchId, ledger: BatchLedger) -> None:
    """Send headers for which the receivers use zeros as the data.

    Raises:
        BridgeError: this rank or a peer has failed.
    """
    for peer, elements in end.parts.sent_to.items():
        description = end.description_to(peer)
        header = BatchHeader(batch.key(back=end.back), batch.position, batch.returns, True, False, elements, description)
        ledger.send(peer, header, None)
