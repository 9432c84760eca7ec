"""One batch on its way over a bridge in one direction, as one rank sees it."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from enum import Enum
from typing import NamedTuple

import torch
import torch.distributed as dist

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.bridge.expected_batch import Expected
from mimo_role.bridge.frames import BatchHeader, BatchKey, Position, Returns
from mimo_role.bridge.local_end import LocalEnd, Part
from mimo_role.bridge.message_tags import Purpose, tag_of
from mimo_role.bridge.transfer_guard import Posted, Transferring
from mimo_role.bridge.wait_cycles import Awaited


class Step(Enum):
    """What a message is part of."""

    SEND = "send"
    RECEIVE = "receive"
    HAND_ON = "hand on"
    """To another copy of this rank's lane, what came over the bridge."""
    TAKE_OVER = "take over"


class Ways(NamedTuple):
    """The groups that a bridge's messages take; `None` for the world's."""

    forward: dist.ProcessGroup | None = None
    back: dist.ProcessGroup | None = None
    among_copies: dist.ProcessGroup | None = None
    """For what the copies of a lane hand on to each other, in either direction."""


class BatchId(NamedTuple):
    """Which batch crosses, in the terms of its headers."""

    bridge: int
    batch: int
    turn: int = 0
    position: Position = Position()
    returns: Returns = Returns.UNKNOWN


_CARRIERS = {1: torch.uint8, 2: torch.bfloat16, 4: torch.int32, 8: torch.int64}
"""By bytes of an element, a dtype that every backend sends; only the bits matter."""

_SENT_AS_THEY_ARE = {
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
}


class Crossing:
    """What this rank sends and receives when one batch crosses. A bridge makes it; `start()` begins, `wait()` ends it.

    Between the two the transfer goes on beside whatever the rank computes. `wait()` starts what has not been started.
    """

    def __init__(
        self,
        end: LocalEnd,
        held: torch.Tensor | None,
        needed: torch.Tensor | None,
        *,
        rank: int,
        identity: BatchId,
        ways: Ways,
        ledger: BatchLedger,
        pool: BufferPool,
        handshake: tuple[Sequence[int], Sequence[int]],
        copies: bool,
        keeps: bool,
        waits_for_headers: bool,
    ) -> None:
        """
        Args:
            end: this rank's end of the bridge.
            held: what it gives, a plain tensor of the end's shape; `None` on a rank that only receives.
            needed: where what it gets goes, contiguous, of the end's shape; `None` on a rank that only sends.
            rank: this rank.
            identity: which batch it is.
            ways: the groups that messages take.
            ledger: where headers and receipts are matched.
            pool: memory for what does not lie in one piece.
            handshake: peers to which a header goes, and from which one comes, even if no data does.
            copies: whether what is sent is copied first, so that `held` may change before it has been taken.
            keeps: whether what is sent is kept until it has been taken, so that nobody has to wait for the crossing.
            waits_for_headers: whether to receive data only after all headers have come, which autograd needs: it may ask for
                batches in another order than that in which their gradients are sent.
        """
        self._end = end
        self._rank = rank
        self._identity = identity
        self._ledger = ledger
        self._pool = pool
        self._handshake = handshake
        self._copies = copies
        self._keeps = keeps
        self._waits_for_headers = waits_for_headers
        self._way = ways.back if end.back else ways.forward
        self._way_among_copies = ways.among_copies
        self._needed = needed
        self._held_flat = None if held is None else _carried(held.detach()).reshape(-1)
        self._needed_flat = None if needed is None else _carried(needed).view(-1)
        self._purpose = Purpose.BACK if end.back else Purpose.FORWARD
        self._key = BatchKey(identity.bridge, self._purpose, identity.batch, identity.turn)
        self._started = self._received = False
        self._landings: list[torch.Tensor | None] = []
        self._expected: list[Expected] = []
        self._expected_from_copies: list[Expected] = []
        self._posted_from: set[int] = set()
        self._untaken: set[int] = set()
        """Peers from which a receipt is awaited."""
        self._pending: dict[Step, list[Posted]] = {}

    def start(self) -> "Crossing":
        """Begin to send and receive; nothing is waited for.

        Raises:
            BridgeError: a peer has gone, or sends another batch.
        """
        start_together([self])
        return self

    def receive(self) -> torch.Tensor | None:
        """Wait for what arrives and return it; `None` on a rank that only sends.

        What this rank sends may still be on its way: the tensor that it is sent from must not change yet.

        Raises:
            BridgeError: it did not come within the timeout, another batch came in its place, a rank that was to send it has
                gone, or a rank that this depends on has failed.
        """
        with self._ledger:
            if not self._received:
                self.start()
                if self._waits_for_headers:
                    self._ledger.wait_for(self._expected)
                    self._receive_from(self._end.received_from)
                self._wait(Step.RECEIVE)
                self._ledger.wait_for(self._expected)
                self._take_from_itself()
                self._exchange_with_copies()
                self._put_in_place()
                for expected in self._expected:
                    if expected.header is not None and expected.header.is_kept:
                        self._ledger.acknowledge(expected.peer, self._key)
                self._received = True
        return self._needed

    def wait(self) -> torch.Tensor | None:
        """As `receive`, and wait until all that this rank sends has been taken."""
        received = self.receive()
        with self._ledger:
            self._wait(Step.SEND)
            self._held_flat = None
        return received

    def let_go(self) -> bool:
        """Give up what has arrived, which is the caller's now; return whether something is still being sent."""
        self._needed = self._needed_flat = None
        return bool(self._pending.get(Step.SEND))

    def was_taken(self, peer: int) -> None:
        """A peer has its part, so what is sent to it has arrived."""
        self._untaken.discard(peer)
        if not self._untaken:
            for sent in self._pending.pop(Step.SEND, ()):
                with suppress(RuntimeError):  # it has arrived, though the peer may have gone since
                    sent.work.wait()
            if self._received:
                self._held_flat = None

    def describe(self, peer: int, key: BatchKey) -> str:
        """What was sent to a peer, for messages."""
        return self._end.describe_send(peer, key, self._identity.position)

    def receive_early(self, peer: int) -> None:
        """Receive from one peer, of which the header has come, before the batch is asked for."""
        self._prepare()
        self._receive_from([peer])

    @property
    def _key_among_copies(self) -> BatchKey:
        purpose = Purpose.BACK_AMONG_COPIES if self._end.back else Purpose.FORWARD_AMONG_COPIES
        return self._key._replace(purpose=purpose)

    def _prepare(self) -> None:
        """Take memory for what arrives and does not lie together in the result."""
        if not self._landings:
            assert self._needed_flat is not None or not self._end.apart
            self._landings = [
                self._pool.take((stream.rows * self._end.spec.width,), self._needed_flat.dtype) if apart else None  # type: ignore[union-attr]
                for stream, apart in zip(self._end.route.receive_streams, self._end.apart, strict=True)
            ]

    def _begin(self) -> "list[Message]":
        """Expect what is to come, and return the messages to post at once."""
        self._ledger.check()
        self._started = True
        end = self._end
        self._prepare()
        self._expected = [self._expect(peer, count, self._key) for peer, count in end.received_from.items()]
        if self._handshake[1]:
            self._expected += [self._expect(peer, 0, self._key) for peer in self._handshake[1] if peer not in end.received_from]
        messages: list[Message] = []
        if not self._waits_for_headers and end.receives:
            self._posted_from.update(end.received_from)
            messages += self._at_landings(Step.RECEIVE, end.receives)
        if end.sends:
            messages += self._sends()
        if end.take_over:
            if self._waits_for_headers:
                key = self._key_among_copies
                self._expected_from_copies = [self._expect(peer, count, key) for peer, count in end.taken_over_from.items()]
            if not self._is_one_operation():
                messages += self._at_landings(Step.TAKE_OVER, end.take_over)
        return messages

    def _announce(self) -> None:
        """Send the headers of what is about to be sent."""
        for peer, elements in self._end.sent_to.items():
            self._ledger.send(peer, self._header(self._key, peer, elements), self)
            if self._keeps:
                self._untaken.add(peer)
        for peer in self._handshake[0]:
            if peer not in self._end.sent_to:
                self._ledger.send(peer, self._header(self._key, peer, 0), self)

    def _header(self, key: BatchKey, peer: int, elements: int) -> BatchHeader:
        position, returns = self._identity.position, self._identity.returns
        is_kept = self._keeps and elements > 0 and key is self._key
        return BatchHeader(key, position, returns, False, is_kept, elements, self._end.description_to(peer))

    def _expect(self, peer: int, elements: int, key: BatchKey) -> Expected:
        end, identity = self._end, self._identity
        is_kept = self._keeps and elements > 0 and key is self._key
        wanted = BatchHeader(key, identity.position, identity.returns, False, is_kept, elements, end.description_from(peer))
        expected = Expected(peer, wanted, end, not self._waits_for_headers)
        self._ledger.expect(expected)
        return expected

    def _is_one_operation(self) -> bool:
        """Whether what arrives is one; elsewhere the copies' messages are awaited from the start, which saves a round trip."""
        return self._needed is not None and is_one_operation(self._needed)

    def _receive_from(self, peers: Iterable[int]) -> None:
        """Post the receives from peers whose headers have come. gloo matches messages of equal tags in order of posting, so
        what a peer sent earlier with the same tags is received first."""
        late = [peer for peer in peers if peer not in self._posted_from]
        zeros = {item.peer for item in self._expected if item.header is not None and item.header.is_zero}
        if not late and not zeros:
            return
        for expected in self._expected:
            if expected.peer in late:
                for key in expected.earlier_alike:
                    if (call := self._ledger.calls.get(key)) is not None:
                        call(expected.peer)
        messages = []
        for message in self._at_landings(Step.RECEIVE, self._end.receives):
            if message.peer in zeros:
                message.tensor.zero_()
            elif message.peer in late:
                messages.append(message)
        self._posted_from.update(late)
        self._add(_post(messages))

    def _sends(self) -> "Iterator[Message]":
        assert self._held_flat is not None
        for part in self._end.sends:
            pieces = [_cut(self._held_flat, start, stop) for start, stop in part.pieces]
            if len(pieces) > 1:
                joined = torch.cat(pieces, out=self._pool.take((part.stop - part.start,), self._held_flat.dtype))
            else:
                joined = pieces[0].clone() if self._copies else pieces[0]
            yield self._message(Step.SEND, joined, part.peer)

    def _at_landings(self, step: Step, parts: Iterable[Part]) -> "Iterator[Message]":
        for part in parts:
            yield self._message(step, self._landing_of(part), part.peer)

    def _message(self, step: Step, data: torch.Tensor, peer: int) -> "Message":
        if step in (Step.SEND, Step.RECEIVE):
            purpose, group = self._purpose, self._way
        else:
            purpose, group = self._key_among_copies.purpose, self._way_among_copies
        return Message(self, step, data, peer, group, tag_of(self._identity.bridge, purpose, self._identity.batch, data))

    def _landing_of(self, part: Part) -> torch.Tensor:
        """Where a part arrives."""
        assert self._needed_flat is not None
        landing = self._landings[part.stream]
        if landing is not None:
            return _cut(landing, part.start, part.stop)
        return _cut(self._needed_flat, *part.pieces[0])

    def _take_from_itself(self) -> None:
        """What lies on this rank already."""
        for here, there in self._end.stays:
            assert self._held_flat is not None
            pieces = [_cut(self._held_flat, start, stop) for start, stop in here.pieces]
            torch.cat(pieces, out=self._landing_of(there))

    def _exchange_with_copies(self) -> None:
        """Give what has arrived to the lane's other copies, and take what they have, so that each has all."""
        end = self._end
        if not (end.handed_to or end.taken_over_from):
            return
        messages = list(self._at_landings(Step.HAND_ON, end.hand_on))
        if self._is_one_operation():
            messages += self._at_landings(Step.TAKE_OVER, end.take_over)
        # Where batches come in order, each copy takes the same ones from the other side, and waits for the others in each.
        for peer, elements in end.handed_to.items() if self._waits_for_headers else ():
            self._ledger.send(peer, self._header(self._key_among_copies, peer, elements), self)
        self._add(_post(messages))
        self._wait(Step.TAKE_OVER)
        self._ledger.wait_for(self._expected_from_copies)
        self._wait(Step.HAND_ON)

    def _put_in_place(self) -> None:
        if True in self._end.apart and self._needed_flat is not None:
            rows = self._needed_flat.view(-1, self._end.spec.width)
            for stream, landing in zip(self._end.route.receive_streams, self._landings, strict=True):
                if landing is not None:
                    parts = torch.split(landing.view(-1, rows.shape[1]), [len(run) for run in stream.runs])
                    for run, part in zip(stream.runs, parts, strict=True):
                        rows[run.start : run.stop] = part
        self._landings = []

    def _add(self, posted: Iterable[tuple[Step, Posted]]) -> None:
        for step, message in posted:
            self._pending.setdefault(step, []).append(message)

    def _wait(self, step: Step) -> None:
        if posted := self._pending.pop(step, None):
            self._ledger.transfer(
                Transferring(posted, lambda: self._missing(step), lambda: self._explain(step, (item.peer for item in posted)))
            )

    def _missing(self, step: Step) -> Sequence[Awaited]:
        """The headers or receipts without which the messages of a step need not end."""
        if step in (Step.RECEIVE, Step.TAKE_OVER):
            expected = self._expected if step is Step.RECEIVE else self._expected_from_copies
            return [item for item in expected if item.header is None]
        if step is Step.HAND_ON:  # the copies' own transfers show whether they are there
            return []
        return self._ledger.without_receipt(self, ((peer, self._key) for peer in self._end.sent_to))

    def _explain(self, step: Step, peers: Iterable[int]) -> str:
        key = self._key if step in (Step.SEND, Step.RECEIVE) else self._key_among_copies
        describe = self._end.describe_send if step in (Step.SEND, Step.HAND_ON) else self._end.describe_receive
        return "; ".join(describe(peer, key, self._identity.position) for peer in dict.fromkeys(peers))


def is_one_operation(tensor: torch.Tensor) -> bool:
    """Whether messages of such tensors are one operation for a whole batch, as NCCL makes it: it ends when all have come."""
    return tensor.device.type != "cpu"


class Message(NamedTuple):
    """One part that a rank sends or receives."""

    crossing: Crossing
    step: Step
    tensor: torch.Tensor
    peer: int
    group: dist.ProcessGroup | None
    tag: int

    @property
    def is_send(self) -> bool:
        """Whether this rank sends it."""
        return self.step in (Step.SEND, Step.HAND_ON)


def send_zeros(end: LocalEnd, identity: BatchId, ledger: BatchLedger) -> None:
    """Send headers for which the receivers take zeros as the data."""
    key = BatchKey(identity.bridge, Purpose.BACK if end.back else Purpose.FORWARD, identity.batch, identity.turn)
    for peer, elements in end.sent_to.items():
        header = BatchHeader(key, identity.position, identity.returns, True, False, elements, end.description_to(peer))
        ledger.send(peer, header, None)


def start_together(crossings: Sequence[Crossing]) -> None:
    """Start several crossings, of whichever bridges, in one batched call for all that use the same group.

    Raises:
        BridgeError: a peer has gone, or sends another batch.
    """
    started = [crossing for crossing in crossings if not crossing._started]
    if not started:
        return
    with started[0]._ledger as ledger:
        ledger.poll_if_behind()
        messages = [message for crossing in started for message in crossing._begin()]
        for crossing in started:  # before the data, so that nobody who has it waits for its header
            crossing._announce()
        for together in _by_group(messages):
            for message, posted in zip(together, _post(together), strict=True):
                message.crossing._add([posted])


def _by_group(messages: list[Message]) -> Iterable[list[Message]]:
    """The messages of each group, which one operation moves on a GPU."""
    if not messages or not is_one_operation(messages[0].tensor):
        return [messages]
    groups: dict[dist.ProcessGroup | None, list[Message]] = defaultdict(list)
    for message in messages:
        groups[message.group].append(message)
    return groups.values()


def _post(messages: Sequence[Message]) -> list[tuple[Step, Posted]]:
    try:
        if messages and is_one_operation(messages[0].tensor):
            works = _post_as_one(messages)
        else:
            works = [_post_one(message) for message in messages]
    except RuntimeError as error:
        problem = "; ".join(dict.fromkeys(message.crossing._explain(message.step, [message.peer]) for message in messages))
        raise messages[0].crossing._ledger.fail_transfer(f"one of these could not begin: {problem}: {error}") from error
    return [
        (message.step, Posted(work, message.tensor, message.peer, message.tag, message.is_send))
        for work, message in zip(works, messages, strict=True)
    ]


def _post_one(message: Message) -> dist.Work:
    """As `dist.isend` or `dist.irecv`, whose checks take a few percent of the time of a small message."""
    if message.group is None:
        group, peer = dist.group.WORLD, message.peer
    else:
        group, peer = message.group, dist.get_group_rank(message.group, message.peer)
    assert group is not None, "the world is joined"
    post = group.send if message.is_send else group.recv
    return post([message.tensor], peer, message.tag)


def _post_as_one(messages: Sequence[Message]) -> list[dist.Work]:
    operations = [
        dist.P2POp(dist.isend if message.is_send else dist.irecv, message.tensor, message.peer, message.group, message.tag)
        for message in messages
    ]
    works = dist.batch_isend_irecv(operations)
    return works * len(messages) if len(works) != len(messages) else works  # NCCL makes one of a batch


def _cut(flat: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return flat if stop - start == flat.numel() else flat[start:stop]


def _carried(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in _SENT_AS_THEY_ARE else tensor.view(_CARRIERS[tensor.element_size()])
