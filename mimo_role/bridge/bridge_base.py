"""The single steps of a bridge: activations and gradients between two stages, one batch and one direction at a time."""

from collections.abc import Callable
from functools import lru_cache

import torch

from mimo_role.bridge.batch_ledger import BatchLedger, shared
from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.bridge.frames import BatchKey, Position, Returns
from mimo_role.bridge.handshake import ActivationSpec, exchange, handshake_peers
from mimo_role.bridge.local_end import LocalEnd, name_of_bridge
from mimo_role.bridge.message_tags import BRIDGES, Purpose
from mimo_role.bridge.transfer import BatchId, Crossing, Ways, send_zeros
from mimo_role.errors import BridgeError
from mimo_role.resharding.samples import Endpoint, Samples, Side

_THE_WORLDS = Ways()
_UNKNOWN = Position()


class BridgeBase:
    """One rank's part of a bridge, in single steps; see `Bridge`."""

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        rank: int,
        device: torch.device,
        number: int,
        *,
        ways: Ways = _THE_WORLDS,
        ledger: BatchLedger | None = None,
        step: Callable[[], int] = lambda: -1,
    ) -> None:
        """
        Args:
            source, destination: the two ends.
            rank: this process's.
            device: where its tensors live.
            number: of this bridge among all of the world; part of its headers and tags.
            ways: the groups that messages take.
            ledger: where headers and receipts are matched; default: the current context's.
            step: returns the training step that the script has come to; -1 if it does not say.

        Raises:
            BridgeError: more bridges than messages can be told apart for, or there is no context.
        """
        if number >= BRIDGES:
            raise BridgeError(f"bridge number {number}: messages can be told apart for {BRIDGES} bridges of one world")
        self.source = source
        self.destination = destination
        self.number = number
        self.ledger = ledger if ledger is not None else shared()
        self.device = device
        self.rank = rank
        self._ways = ways
        self._step = step
        self._pool = BufferPool(device)
        self._next = {"forward": 0, "back": 0, "exchange": 0}
        """The numbers of the batches to come."""
        self._handshake = handshake_peers(source, destination, rank)
        self.ledger.add_peers({*self._handshake[0], *self._handshake[1]})
        self._ends = lru_cache(maxsize=64)(self._make_end)
        self._last_end: dict[bool, LocalEnd] = {}
        """By direction."""
        self._on_source, self._on_destination = source.place(rank), destination.place(rank)

    @property
    def is_sender(self) -> bool:
        """Whether this rank gives activations."""
        return self._on_source is not None

    @property
    def is_receiver(self) -> bool:
        """Whether this rank takes activations."""
        return self._on_destination is not None

    def send_forward(self, activations: torch.Tensor, spec: ActivationSpec, position: Position = _UNKNOWN) -> Crossing:
        """Give activations. They must not change before the crossing's `wait()` has returned.

        Raises:
            BridgeError: this rank is not on the sending side alone, or the tensor does not fit.
        """
        return self._one_sided(activations, spec, position, back=False)

    def recv_forward(self, spec: ActivationSpec, position: Position = _UNKNOWN) -> Crossing:
        """Take activations: the crossing's `wait()` returns them.

        Raises:
            BridgeError: this rank is not on the receiving side alone.
        """
        return self._one_sided(None, spec, position, back=False)

    def send_backward(self, gradients: torch.Tensor, spec: ActivationSpec, position: Position = _UNKNOWN) -> Crossing:
        """Give gradients, on a rank that took activations. They must not change before `wait()` has returned.

        Raises:
            BridgeError: this rank is not on the receiving side alone, or the tensor does not fit.
        """
        return self._one_sided(gradients, spec, position, back=True)

    def recv_backward(self, spec: ActivationSpec, position: Position = _UNKNOWN) -> Crossing:
        """Take gradients, on a rank that gave activations: the crossing's `wait()` returns them.

        Raises:
            BridgeError: this rank is not on the sending side alone.
        """
        return self._one_sided(None, spec, position, back=True)

    def exchange_spec(self, spec: ActivationSpec | None = None, *, samples: Samples | None = None) -> ActivationSpec:
        """For batches of which the receivers do not know the token counts or the shape: senders send them, in one frame.

        Called on all ranks of the bridge, for each such batch. It waits for the answer.

        Args:
            spec: on a sender, what it sends.
            samples: on a rank that only receives, the number of samples and, where they are given by hand, their lanes and
                places; its `tokens` are not looked at.

        Returns:
            The spec with which the batch can cross.

        Raises:
            BridgeError: this rank is on neither side or lacks its argument, or the senders do not agree or answer.
        """
        self.check_takes_part()
        if self.is_sender and spec is None:
            raise BridgeError(f"rank {self.rank} sends over {self}; pass spec")
        known = samples if spec is None else spec.samples
        if known is None:
            raise BridgeError(f"rank {self.rank} only receives over {self}; pass samples")
        sides = Side(self.source, known, True), Side(self.destination, known, False)
        number = self.number_of("exchange")
        with self.ledger:
            return exchange(*sides, self.rank, spec, self.number, number, self.ledger, f"{self}: rank {self.rank}")

    def wait(self) -> None:
        """Wait until all that was sent has been taken.

        Raises:
            BridgeError: a peer did not take it within the timeout, or has gone.
        """
        with self.ledger:
            self.ledger.wait_until_all_taken(self.number)

    def __str__(self) -> str:
        return name_of_bridge(self.source, self.destination)

    def crossing(
        self,
        given: torch.Tensor | None,
        spec: ActivationSpec,
        *,
        back: bool,
        copies: bool = False,
        keeps: bool = False,
        number: int | None = None,
        turn: int = 0,
        position: Position = _UNKNOWN,
        returns: Returns = Returns.UNKNOWN,
        waits_for_headers: bool = False,
    ) -> Crossing:
        """This rank's part of a batch in one direction, whichever sides it is on; where on both, what it has stays there.

        Args:
            given: activations on a sender, or with `back` gradients on a receiver. They must not change before the crossing's
                `wait()` has returned.
            spec: what crosses.
            back: from destination to source.
            copies: whether to copy what is sent, so that `given` may change at once.
            keeps: whether to keep what is sent until it has been taken, so that nobody has to `wait()`.
            number: of the batch, the same on all ranks; default: one more than that of the last in this direction.
            turn: how often the batch has gone back before.
            position: the batch's step and micro-batch; compared with the other side's where both give them.
            returns: whether gradients come back; likewise.
            waits_for_headers: whether to receive only what has been announced, in the order in which it was sent.

        Raises:
            BridgeError: this rank is on neither side, or the tensor does not fit.
        """
        self.check_takes_part()
        self.ledger.send_started()
        end = self._end(spec, back)
        held = needed = None
        if end.given is not None:
            held = end.checked(given)
        elif given is not None:
            what = "gradients" if back else "activations"
            raise BridgeError(f"rank {self.rank} only receives over {self}; pass no {what}")
        if end.taken is not None:
            needed = self._pool.take(end.taken, spec.dtype)
        batch = self.number_of("back" if back else "forward", number)
        if position == _UNKNOWN and not back:
            position = Position(step=self._step())
        return Crossing(
            end,
            held,
            needed,
            rank=self.rank,
            identity=BatchId(self.number, batch, turn, position, returns),
            ways=self._ways,
            ledger=self.ledger,
            pool=self._pool,
            handshake=self._handshake if batch == 0 and not back else ((), ()),
            copies=copies,
            keeps=keeps,
            waits_for_headers=waits_for_headers,
        )

    def as_plain(self, activations: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """What this rank sends, as a plain tensor that autograd leads on from.

        Raises:
            BridgeError: a kind of tensor that cannot cross.
        """
        return self._end(spec, False).as_plain(activations)

    def send_zeros_back(self, spec: ActivationSpec, number: int, turn: int) -> None:
        """Send zeros for the gradients of a batch, without their data.

        Raises:
            BridgeError: a peer has failed.
        """
        send_zeros(self._end(spec, True), BatchId(self.number, number, turn), self.ledger)

    def back_key(self, number: int, turn: int = 0) -> BatchKey:
        """The name of a batch's way back in the ledger."""
        return BatchKey(self.number, Purpose.BACK, number, turn)

    def senders_back(self, spec: ActivationSpec) -> list[int]:
        """The ranks from which the gradients of a batch come."""
        return list(self._end(spec, True).received_from)

    @property
    def next_batch(self) -> int:
        """The number of the batch that goes forward next."""
        return self._next["forward"]

    def number_of(self, kind: str, number: int | None = None) -> int:
        """The batch's number, this one or the next, counted on from it."""
        taken = self._next[kind] if number is None else number
        self._next[kind] = max(self._next[kind], taken + 1)
        return taken

    def _one_sided(self, given: torch.Tensor | None, spec: ActivationSpec, position: Position, *, back: bool) -> Crossing:
        if self.is_sender and self.is_receiver:
            raise BridgeError(f"rank {self.rank} is on both sides of {self}; use crossing()")
        if given is None and (self.is_receiver if back else self.is_sender):
            sent, verb = ("gradients", "send_backward()") if back else ("activations", "send_forward()")
            raise BridgeError(f"rank {self.rank} sends {sent} over {self}; call {verb}")
        self.check_takes_part()
        if given is not None and not (self.is_receiver if back else self.is_sender):
            received, verb = ("gradients", "recv_backward()") if back else ("activations", "recv_forward()")
            raise BridgeError(f"rank {self.rank} receives {received} over {self}; call {verb}")
        return self.crossing(given, spec, back=back, position=position)

    def _end(self, spec: ActivationSpec, back: bool) -> LocalEnd:
        """This rank's end, kept for batches of the same spec."""
        last = self._last_end.get(back)
        if last is None or last.spec is not spec:  # to hash a spec takes longer than the rest
            last = self._last_end[back] = self._ends(spec, back)
        return last

    def _make_end(self, spec: ActivationSpec, back: bool) -> LocalEnd:
        return LocalEnd(self.rank, self.device, self.source, self.destination, spec, back=back)

    def check_takes_part(self) -> None:
        """
        Raises:
            BridgeError: this rank is on neither side.
        """
        if not (self.is_sender or self.is_receiver):
            raise BridgeError(f"rank {self.rank} takes no part in {self}")
