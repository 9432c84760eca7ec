"""One batch on its way over a bridge in one direction, as one rank sees it."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import islice
from typing import NamedTuple

import torch
import torch.distributed as dist

from mimo_role.buffers import BufferPool
from mimo_role.errors import BridgeError
from mimo_role.routing import Route, Stream, Transfer
from mimo_role.tags import Purpose, tag_of


class Step(Enum):
    """What a message is part of."""

    SEND = "send"
    RECEIVE = "receive"
    HAND_ON = "hand on"
    """To another copy of this rank's lane, what came over the bridge."""
    TAKE_OVER = "take over"


class Message(NamedTuple):
    """One part that this rank sends or receives."""

    operation: dist.P2POp
    step: Step
    transfer: Transfer
    stream: Stream


_PURPOSES = {
    (False, False): Purpose.FORWARD,
    (True, False): Purpose.BACK,
    (False, True): Purpose.FORWARD_AMONG_COPIES,
    (True, True): Purpose.BACK_AMONG_COPIES,
}


class Ways(NamedTuple):
    """The groups that a bridge's messages take; `None` for the world's."""

    forward: dist.ProcessGroup | None = None
    back: dist.ProcessGroup | None = None
    among_copies: dist.ProcessGroup | None = None
    """For what the copies of a lane hand on to each other, in either direction."""


class Crossing:
    """What this rank sends and receives when one batch crosses. A bridge makes it; `start()` begins, `wait()` ends it.

    Between the two the transfer goes on beside whatever the rank computes. `wait()` starts what has not been started.
    """

    def __init__(
        self,
        route: Route,
        rank: int,
        held_rows: torch.Tensor | None,
        needed: torch.Tensor | None,
        *,
        width: int,
        bridge: int,
        back: bool,
        batch: int,
        way: dist.ProcessGroup | None,
        way_among_copies: dist.ProcessGroup | None,
        pool: BufferPool,
        explain: Callable[[Message], str],
        check: Callable[[], None],
        copies: bool,
    ) -> None:
        """
        Args:
            route: of this rank.
            rank: this rank.
            held_rows: what it gives, contiguous, `[rows, width]`, a row for each token; `None` on a rank that only receives.
            needed: where what it gets goes, contiguous, of any shape with rows of that width; `None` on a rank that only sends.
            width: elements of a row.
            bridge, back, batch: the numbers of the bridge and of the batch, and the direction; in the messages' tags.
            way, way_among_copies: the groups for the bridge's messages in this direction, and for what is handed on.
            pool: memory for what does not lie in one piece.
            explain: says what a message was to bring and where; asked for when it has failed.
            check: raises if the two sides do not agree; called before anything that has arrived is used.
            copies: whether what is sent is copied first, so that `held_rows` may change before it has been taken.
        """
        self._route = route
        self._rank = rank
        self._held_rows = held_rows
        self._needed = needed
        self._needed_rows = None if needed is None else needed.view(route.rows_needed, width)
        self._bridge = bridge
        self._back = back
        self._batch = batch
        self._way = way
        self._way_among_copies = way_among_copies
        self._pool = pool
        self._explain = explain
        self._check = check
        self._copies = copies
        self._started = self._received = False
        self._failure: Exception | None = None
        self._landings: list[torch.Tensor | None] = []
        self._pending: dict[Step, list[tuple[dist.Work, Message]]] = {step: [] for step in Step}

    def start(self) -> "Crossing":
        """Begin to send and receive; nothing is waited for."""
        start_together([self])
        return self

    def receive(self) -> torch.Tensor | None:
        """Wait for what arrives and return it; `None` on a rank that only sends.

        What this rank sends may still be on its way: the tensor that it is sent from must not change yet.

        Raises:
            BridgeError: it did not come within the timeout, a rank that was to send it has died, or the two sides do not
                agree on what crosses.
        """
        if self._failure is not None:
            raise self._failure
        try:
            self.start()
            if not self._received:
                self._check()
                self._wait(Step.RECEIVE)
                self._take_from_itself()
                self._exchange_with_copies()
                self._put_in_place()
                self._received = True
        except Exception as error:
            self._failure = error  # what has arrived of it is not to be used
            raise
        return self._needed

    def wait(self) -> torch.Tensor | None:
        """As `receive`, and wait until all that this rank sends has been taken."""
        received = self.receive()
        self._wait(Step.SEND)
        self._held_rows = None
        return received

    def let_go(self) -> bool:
        """Give up what has arrived, which is the caller's now; return whether something is still being sent."""
        self._needed = self._needed_rows = None
        return bool(self._pending[Step.SEND])

    def _first_messages(self) -> list[Message]:
        self._started = True
        self._landings = [self._landing(stream) for stream in self._route.receive_streams]
        messages = [*self._at_landings(Step.RECEIVE, self._route.receives), *self._sends()]
        if not self._is_one_operation():
            messages += self._at_landings(Step.TAKE_OVER, self._route.take_over)
        return messages

    def _is_one_operation(self) -> bool:
        """Whether a batch of messages is one operation, as NCCL makes it: it ends when all of them have come.

        Elsewhere the copies' messages are awaited from the start, which saves a round trip for each.
        """
        return self._needed is not None and self._needed.device.type != "cpu"

    def _sends(self) -> Iterator[Message]:
        for transfer in self._route.sends:
            if transfer.peer != self._rank and self._held_rows is not None:
                stream = self._route.send_streams[transfer.stream]
                pieces = _pieces(self._held_rows, stream, transfer)
                part = pieces[0].clone() if self._copies and len(pieces) == 1 else self._joined(pieces)
                yield self._message(Step.SEND, part, transfer, stream)

    def _at_landings(self, step: Step, transfers: Sequence[Transfer]) -> Iterator[Message]:
        for transfer in transfers:
            if transfer.peer != self._rank:
                stream = self._route.receive_streams[transfer.stream]
                yield self._message(step, self._landing_of(transfer), transfer, stream)

    def _message(self, step: Step, part: torch.Tensor, transfer: Transfer, stream: Stream) -> Message:
        among_copies = step in (Step.HAND_ON, Step.TAKE_OVER)
        purpose = _PURPOSES[self._back, among_copies]
        tag = tag_of(self._bridge, purpose, self._batch, part)
        verb = dist.isend if step in (Step.SEND, Step.HAND_ON) else dist.irecv
        way = self._way_among_copies if among_copies else self._way
        return Message(dist.P2POp(verb, part, transfer.peer, way, tag), step, transfer, stream)

    def _landing(self, stream: Stream) -> torch.Tensor | None:
        """Memory beside the result, for a stream whose parts do not each lie in one piece of it."""
        assert self._needed_rows is not None
        if len(stream.runs) == 1 or stream.cuts:
            return None
        return self._pool.take((stream.rows, self._needed_rows.shape[1]), self._needed_rows.dtype)

    def _landing_of(self, transfer: Transfer) -> torch.Tensor:
        """Where a part arrives."""
        assert self._needed_rows is not None
        landing = self._landings[transfer.stream]
        if landing is not None:
            return landing.view(-1)[transfer.start : transfer.stop]
        return _pieces(self._needed_rows, self._route.receive_streams[transfer.stream], transfer)[0]

    def _joined(self, pieces: list[torch.Tensor]) -> torch.Tensor:
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces, out=self._pool.take((sum(map(torch.Tensor.numel, pieces)),), pieces[0].dtype))

    def _take_from_itself(self) -> None:
        """What lies on this rank already."""
        given = [transfer for transfer in self._route.sends if transfer.peer == self._rank]
        taken = [transfer for transfer in self._route.receives if transfer.peer == self._rank]
        for here, there in zip(given, taken, strict=True):
            assert self._held_rows is not None
            pieces = _pieces(self._held_rows, self._route.send_streams[here.stream], here)
            torch.cat(pieces, out=self._landing_of(there))

    def _exchange_with_copies(self) -> None:
        """Give what has arrived to the lane's other copies, and take what they have, so that each has all."""
        messages = list(self._at_landings(Step.HAND_ON, self._route.hand_on))
        if self._is_one_operation():
            messages += self._at_landings(Step.TAKE_OVER, self._route.take_over)
        self._add(_post([(self, message) for message in messages]))
        self._wait(Step.TAKE_OVER)
        self._wait(Step.HAND_ON)

    def _put_in_place(self) -> None:
        for stream, landing in zip(self._route.receive_streams, self._landings, strict=True):
            if landing is not None and self._needed_rows is not None:
                parts = torch.split(landing, [len(run) for run in stream.runs])
                for run, part in zip(stream.runs, parts, strict=True):
                    self._needed_rows[run.start : run.stop] = part
        self._landings = []

    def _add(self, pending: Iterable[tuple[dist.Work, Message]]) -> None:
        for work, message in pending:
            self._pending[message.step].append((work, message))

    def _wait(self, step: Step) -> None:
        waited_for, self._pending[step] = self._pending[step], []
        for work, message in waited_for:
            try:
                work.wait()
            except RuntimeError as error:
                self._failure = BridgeError(f"{self._explain(message)}: {error}")
                raise self._failure from error


def _pieces(rows: torch.Tensor, stream: Stream, transfer: Transfer) -> list[torch.Tensor]:
    """Where the elements of a stream that a transfer moves lie in a rank's tensor, in order."""
    flat, width = rows.view(-1), rows.shape[1]
    pieces, passed = [], 0
    for run in stream.runs:
        start, stop = max(transfer.start - passed, 0), min(transfer.stop - passed, len(run) * width)
        if start < stop:
            pieces.append(flat[run.start * width + start : run.start * width + stop])
        passed += len(run) * width
    return pieces


def start_together(crossings: Sequence[Crossing]) -> None:
    """Start several crossings, of whichever bridges, in one batched call for all that use the same group."""
    ways: dict[dist.ProcessGroup | None, list[tuple[Crossing, list[Message]]]] = defaultdict(list)
    for crossing in crossings:
        if not crossing._started:
            ways[crossing._way].append((crossing, crossing._first_messages()))
    for own in ways.values():
        try:
            pending = iter(_post([(crossing, message) for crossing, messages in own for message in messages]))
        except BridgeError as error:
            for crossing, _ in own:
                crossing._failure = error
            raise
        for crossing, messages in own:
            crossing._add(islice(pending, len(messages)))


def _post(messages: Sequence[tuple["Crossing", Message]]) -> list[tuple[dist.Work, Message]]:
    try:
        works = dist.batch_isend_irecv([message.operation for _, message in messages]) if messages else []
    except RuntimeError as error:
        told = "; ".join(dict.fromkeys(crossing._explain(message) for crossing, message in messages))
        raise BridgeError(f"one of these could not even begin: {told}: {error}") from error
    if len(works) != len(messages):  # NCCL makes one of a batch
        works = works * len(messages)
    return [(work, message) for work, (_, message) in zip(works, messages, strict=True)]
