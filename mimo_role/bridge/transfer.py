"""The transfer of one batch over a bridge in one direction, on one rank."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.frames import BatchKey
from mimo_role.bridge.local_end import LocalEnd
from mimo_role.bridge.messages import Channels, Message, Step, is_one_operation, post
from mimo_role.bridge.parts import Part
from mimo_role.bridge.transfer_guard import Posted, Transferring
from mimo_role.bridge.transfer_headers import TransferHeaders
from mimo_role.bridge.transfer_tensors import TransferTensors
from mimo_role.bridge.wait_cycles import Awaited


class TransferOptions(NamedTuple):
    """How a batch is transferred."""

    copy: bool = False
    """Whether what is sent is copied first, so that it may change at once."""
    keep: bool = False
    """Whether what is sent is kept until it has been received, so that nobody has to `wait()`."""
    headers_first: bool = False
    """Whether data is received only after all headers have come. Autograd needs it: it may ask for batches in another order
    than that in which their gradients are sent."""


class Transfer:
    """What this rank sends and receives in one batch. A bridge makes it; `start()` begins, `wait()` completes it.

    In between, data is transferred while the rank computes. `wait()` starts a transfer that has not been started.
    """

    def __init__(
        self,
        end: LocalEnd,
        tensors: TransferTensors,
        headers: TransferHeaders,
        channels: Channels,
        ledger: BatchLedger,
        options: TransferOptions,
    ) -> None:
        """
        Args:
            end: this rank's end of the bridge.
            tensors: the memory from which it sends and into which it receives.
            headers: those of the batch.
            channels: the process groups of its messages.
            ledger: matches headers and receipts.
            options: how the batch is transferred.
        """
        self._end = end
        self._tensors = tensors
        self._headers = headers
        self._channels = channels
        self._ledger = ledger
        self._options = options
        self._started = self._received = False
        self._posted_from: set[int] = set()
        """Peers from which receives have been posted."""
        self._awaiting_receipt: set[int] = set()
        self._pending: dict[Step, list[Posted]] = {}

    def __del__(self) -> None:
        # A failure, or the script, may drop a transfer that has begun; its peers may still wait for the data.
        for posted in self._pending.values():
            if not is_one_operation(posted[0].tensor):  # under NCCL, torch keeps the memory until the work is complete
                self._ledger.keep_in_flight(posted)

    @property
    def senders(self) -> tuple[int, ...]:
        """The other ranks from which this one receives."""
        parts = self._end.parts
        return tuple(dict.fromkeys((*parts.received_from, *parts.replica_received_from)))

    @property
    def sends(self) -> bool:
        """Whether this rank sends anything to others."""
        return bool(self._end.parts.sent_to)

    def prepare(self) -> "Transfer":
        """Take the memory for what this rank receives, which `start()` does otherwise."""
        self._tensors.allocate()
        return self

    def start(self) -> "Transfer":
        """Begin to send and receive, without waiting.

        Raises:
            BridgeError: a peer has left, exited or died, or sends another batch.
        """
        start_together([self])
        return self

    def receive(self) -> torch.Tensor | None:
        """Wait for what this rank receives and return it; `None` on a rank that only sends.

        What this rank sends may still be in flight: the tensor from which it is sent must not change yet.

        Raises:
            BridgeError: it did not come within the timeout, another batch came instead, its sender has left, exited or died,
                or a rank on which this depends has failed.
        """
        with self._ledger:
            if not self._received:
                self.start()
                if self._options.headers_first:
                    self._ledger.wait_for(self._headers.expected)
                    self._post_receives(self._end.parts.received_from)
                self._wait(Step.RECEIVE)
                self._ledger.wait_for(self._headers.expected)
                self._tensors.copy_local_parts()
                self._exchange_with_replicas()
                self._tensors.assemble()
                self._headers.acknowledge()
                self._received = True
        return self._tensors.result

    def wait(self) -> torch.Tensor | None:
        """As `receive`, and wait until all that this rank sends has been received."""
        received = self.receive()
        with self._ledger:
            self._wait(Step.SEND)
            self._tensors.release_source()
        return received

    def release_result(self) -> bool:
        """Drop what has been received, which is the caller's now; return whether this rank is still sending."""
        self._tensors.release_result()
        return bool(self._pending.get(Step.SEND))

    def was_taken(self, peer: int) -> None:
        """A peer has received its part."""
        self._awaiting_receipt.discard(peer)
        if not self._awaiting_receipt:
            for sent in self._pending.pop(Step.SEND, ()):
                # Under NCCL, waiting would make a stream wait; torch keeps the memory until the work is complete.
                if not is_one_operation(sent.tensor):
                    with suppress(RuntimeError):  # it has arrived, though the peer may have exited since
                        sent.work.wait()
            if self._received:
                self._tensors.release_source()

    def describe(self, peer: int, key: BatchKey) -> str:
        """What was sent to a peer, for messages."""
        return self._headers.describe_sent(peer, key)

    def describe_messages(self, step: Step, peers: Iterable[int]) -> str:
        """Messages to or from some peers, for errors."""
        return self._headers.describe(step, peers)

    def add_posted(self, step: Step, posted: Posted) -> None:
        """A message has been posted."""
        self._pending.setdefault(step, []).append(posted)

    def receive_early(self, peer: int) -> None:
        """Receive from one peer, whose header has come, before the batch is asked for."""
        self._tensors.allocate()
        self._post_receives([peer])

    def _begin(self) -> list[Message]:
        """Expect headers, and return the messages to post at once."""
        self._ledger.check()
        self._started = True
        parts, headers_first = self._end.parts, self._options.headers_first
        self._tensors.allocate()
        self._headers.expect()
        messages: list[Message] = []
        if not headers_first and parts.receives:
            self._posted_from.update(parts.received_from)
            messages += self._receives(Step.RECEIVE, parts.receives)
        messages += (self._message(Step.SEND, self._tensors.outgoing(part), part.peer) for part in parts.sends)
        if parts.replica_receives:
            if headers_first:
                self._headers.expect_from_replicas()
            if not self._tensors.is_one_operation:
                messages += self._receives(Step.REPLICA_RECEIVE, parts.replica_receives)
        return messages

    def _send_headers(self) -> None:
        if self._options.keep:
            self._awaiting_receipt.update(self._end.parts.sent_to)
        self._headers.send(self)

    def _post_receives(self, peers: Collection[int]) -> None:
        """Post the receives from peers whose headers have come."""
        late = [peer for peer in peers if peer not in self._posted_from]
        zeros = self._headers.peers_with_zeros()
        if not late and not zeros:
            return
        self._headers.receive_earlier(late)
        messages = []
        for message in self._receives(Step.RECEIVE, self._end.parts.receives):
            if message.peer in zeros:
                message.tensor.zero_()
            elif message.peer in late:
                messages.append(message)
        self._posted_from.update(late)
        post(messages, self._ledger)

    def _receives(self, step: Step, parts: Iterable[Part]) -> Iterator[Message]:
        for part in parts:
            yield self._message(step, self._tensors.incoming(part), part.peer)

    def _message(self, step: Step, data: torch.Tensor, peer: int) -> Message:
        key = self._headers.replica_key if step.is_among_replicas else self._headers.key
        return Message.of(self, step, data, peer, key=key, channels=self._channels)

    def _exchange_with_replicas(self) -> None:
        """Send what has been received to the lane's other replicas, and receive what they have, so that each has all."""
        parts = self._end.parts
        if not (parts.replica_sent_to or parts.replica_received_from):
            return
        messages = list(self._receives(Step.REPLICA_SEND, parts.replica_sends))
        if self._tensors.is_one_operation:
            messages += self._receives(Step.REPLICA_RECEIVE, parts.replica_receives)
        # Where batches come in order, each replica receives the same ones, and waits for the others in each.
        if self._options.headers_first:
            self._headers.send_to_replicas(self)
        post(messages, self._ledger)
        self._wait(Step.REPLICA_RECEIVE)
        self._ledger.wait_for(self._headers.expected_from_replicas)
        self._wait(Step.REPLICA_SEND)

    def _wait(self, step: Step) -> None:
        if posted := self._pending.pop(step, None):
            self._ledger.wait_for_data(
                Transferring(
                    posted, lambda: self._missing(step), lambda: self._headers.describe(step, (item.peer for item in posted))
                )
            )

    def _missing(self, step: Step) -> Sequence[Awaited]:
        """The headers or receipts without which the messages of a step need not complete."""
        if step is Step.SEND:
            return self._ledger.without_receipt(self, ((peer, self._headers.key) for peer in self._end.parts.sent_to))
        if step is Step.REPLICA_SEND:  # the replicas' own transfers show whether they are alive
            return []
        expected = self._headers.expected if step is Step.RECEIVE else self._headers.expected_from_replicas
        return [item for item in expected if item.header is None]


def start_together(transfers: Sequence[Transfer]) -> None:
    """Start several transfers, of whichever bridges, in one batched call for all that use the same group.

    Raises:
        BridgeError: a peer has left, exited or died, or sends another batch.
    """
    started = [transfer for transfer in transfers if not transfer._started]
    if not started:
        return
    with started[0]._ledger as ledger:
        ledger.poll_if_behind()
        messages = [message for transfer in started for message in transfer._begin()]
        for transfer in started:  # before the data, so that a rank that has the data does not wait for its header
            transfer._send_headers()
        post(messages, ledger)
