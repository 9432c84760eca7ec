"""The single steps of a bridge: activations or gradients of one batch, in one direction."""

from collections.abc import Callable
from functools import lru_cache

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.batch_ledger import BatchLedger, shared
from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.bridge.frames import BatchKey, Position, Returns
from mimo_role.bridge.handshake import exchange, first_batch_peers
from mimo_role.bridge.local_end import LocalEnd, name_of_bridge
from mimo_role.bridge.message_tags import BRIDGES, Purpose
from mimo_role.bridge.messages import Channels
from mimo_role.bridge.transfer import Transfer, TransferOptions
from mimo_role.bridge.transfer_headers import BatchId, TransferHeaders, send_zeros
from mimo_role.bridge.transfer_tensors import TransferTensors
from mimo_role.errors import BridgeError
from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.samples import Samples

_OF_THE_WORLD = Channels()
_DEFAULT = TransferOptions()
_UNKNOWN = Position()


class BridgeBase:
    """One rank's part of a bridge, in single steps; see `Bridge`.

    It has more attributes than other classes: those that name the bridge and its ends, and caches of ends, numbers and memory.
    """

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        rank: int,
        device: torch.device,
        number: int,
        *,
        channels: Channels = _OF_THE_WORLD,
        ledger: BatchLedger | None = None,
        step: Callable[[], int] = lambda: -1,
    ) -> None:
        """
        Args:
            source, destination: the two ends.
            rank: this process's.
            device: where its tensors live.
            number: of this bridge among all of the world; part of its headers and tags.
            channels: the process groups of its messages.
            ledger: matches headers and receipts; default: the current context's.
            step: returns the script's current training step; -1 if it does not report steps.

        Raises:
            BridgeError: there are too many bridges, or there is no context.
        """
        if number >= BRIDGES:
            raise BridgeError(f"bridge number {number}: one world can have {BRIDGES} bridges")
        self.source = source
        self.destination = destination
        self.number = number
        self.ledger = ledger if ledger is not None else shared()
        self.device = device
        self.rank = rank
        self._channels = channels
        self._step = step
        self._pool = BufferPool(device)
        self._next = {"forward": 0, "back": 0, "exchange": 0}
        """The number of the next batch, by kind."""
        self._handshake = first_batch_peers(source, destination, rank)
        self.ledger.add_peers({*self._handshake[0], *self._handshake[1]})
        self._ends = lru_cache(maxsize=64)(self._make_end)
        self._last_end: dict[bool, LocalEnd] = {}
        """By direction."""
        self._on_source, self._on_destination = source.place_of(rank), destination.place_of(rank)

    @property
    def is_sender(self) -> bool:
        """Whether this rank sends activations."""
        return self._on_source is not None

    @property
    def is_receiver(self) -> bool:
        """Whether this rank receives activations."""
        return self._on_destination is not None

    def send_forward(self, activations: torch.Tensor, spec: ActivationSpec, position: Position = _UNKNOWN) -> Transfer:
        """Send activations. They must not change before `wait()` of the transfer has returned.

        Raises:
            BridgeError: this rank does not only send activations, or the tensor does not fit.
        """
        return self._one_sided(activations, spec, position, back=False)

    def recv_forward(self, spec: ActivationSpec, position: Position = _UNKNOWN) -> Transfer:
        """Receive activations: `wait()` of the transfer returns them.

        Raises:
            BridgeError: this rank does not only receive activations.
        """
        return self._one_sided(None, spec, position, back=False)

    def send_backward(self, gradients: torch.Tensor, spec: ActivationSpec, position: Position = _UNKNOWN) -> Transfer:
        """Send gradients, on a rank that received activations. They must not change before `wait()` has returned.

        Raises:
            BridgeError: this rank does not only receive activations, or the tensor does not fit.
        """
        return self._one_sided(gradients, spec, position, back=True)

    def recv_backward(self, spec: ActivationSpec, position: Position = _UNKNOWN) -> Transfer:
        """Receive gradients, on a rank that sent activations: `wait()` of the transfer returns them.

        Raises:
            BridgeError: this rank does not only send activations.
        """
        return self._one_sided(None, spec, position, back=True)

    def exchange_spec(self, spec: ActivationSpec | None = None, *, samples: Samples | None = None) -> ActivationSpec:
        """Send the token counts and the shape of a batch to receivers that do not know them, in one frame from each sender.

        Called on all ranks of the bridge, for each such batch. Receivers wait for it.

        Args:
            spec: on a sender, what it sends.
            samples: on a rank that only receives, the number of samples and, where they are given by hand, their lanes and
                places; its `tokens` are ignored.

        Returns:
            The spec of the batch.

        Raises:
            BridgeError: this rank is on neither side, its argument is missing, or the senders disagree or do not answer.
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
        """Wait until all that was sent has been received.

        Raises:
            BridgeError: a peer did not receive it within the timeout, or has left, exited or died.
        """
        with self.ledger:
            self.ledger.wait_until_all_taken(self.number)

    def __str__(self) -> str:
        return name_of_bridge(self.source, self.destination)

    def transfer(
        self,
        given: torch.Tensor | None,
        spec: ActivationSpec,
        *,
        back: bool,
        options: TransferOptions = _DEFAULT,
        number: int | None = None,
        turn: int = 0,
        position: Position = _UNKNOWN,
        returns: Returns = Returns.UNKNOWN,
    ) -> Transfer:
        """The transfer of one batch in one direction, on a rank of either side or of both.

        Args:
            given: activations on a sender, or with `back` gradients on a receiver. They must not change before `wait()` has
                returned.
            spec: of the batch.
            back: from destination to source.
            options: how the batch is transferred.
            number: of the batch, the same on all ranks; default: the next in this direction.
            turn: how many times the gradients of the batch have been transferred before.
            position: step and micro-batch of the batch; compared with the other side's if both know them.
            returns: whether gradients come back; likewise.

        Raises:
            BridgeError: this rank is on neither side, or the tensor does not fit.
        """
        self.check_takes_part()
        self.ledger.gradients.send_started()
        end = self._end(spec, back)
        source = result = None
        if end.sent_shape is not None:
            source = end.checked(given)
        elif given is not None:
            what = "gradients" if back else "activations"
            raise BridgeError(f"rank {self.rank} only receives over {self}; pass no {what}")
        if end.received_shape is not None:
            result = self._pool.take(end.received_shape, spec.dtype)
        batch = self.number_of("back" if back else "forward", number)
        if position == _UNKNOWN and not back:
            position = Position(step=self._step())
        headers = TransferHeaders(
            end,
            BatchId(self.number, batch, turn, position, returns),
            self.ledger,
            self._handshake if batch == 0 and not back else ((), ()),
            in_order=not options.headers_first,
            is_kept=options.keep,
        )
        tensors = TransferTensors(end, source, result, self._pool, copy=options.copy)
        return Transfer(end, tensors, headers, self._channels, self.ledger, options)

    def as_plain(self, activations: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """What this rank sends, as a plain tensor in the same autograd graph.

        Raises:
            BridgeError: a kind of tensor that cannot be transferred.
        """
        return self._end(spec, False).as_plain(activations)

    def runs_sent_back(self, spec: ActivationSpec) -> tuple[tuple[int, int], ...]:
        """The elements of a flattened gradient that this rank sends: begin and end of each run. Replicas divide the others."""
        return self._end(spec, True).parts.sent_runs

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Memory of the bridge's pool: a contiguous tensor of any content."""
        return self._pool.take(shape, dtype)

    def send_zeros_back(self, spec: ActivationSpec, number: int, turn: int) -> None:
        """Send zeros for the gradients of a batch, without their data.

        Raises:
            BridgeError: a peer has failed.
        """
        send_zeros(self._end(spec, True), BatchId(self.number, number, turn), self.ledger)

    def back_key(self, number: int, turn: int = 0) -> BatchKey:
        """The gradients of a batch in the ledger."""
        return BatchKey(self.number, Purpose.BACK, number, turn)

    def senders_back(self, spec: ActivationSpec) -> list[int]:
        """The ranks from which the gradients of a batch come."""
        return list(self._end(spec, True).parts.received_from)

    @property
    def next_batch(self) -> int:
        """The number of the next batch of activations."""
        return self._next["forward"]

    def number_of(self, kind: str, number: int | None = None) -> int:
        """A batch's number: the given or the next one. The next ones are counted from it."""
        taken = self._next[kind] if number is None else number
        self._next[kind] = max(self._next[kind], taken + 1)
        return taken

    def _one_sided(self, given: torch.Tensor | None, spec: ActivationSpec, position: Position, *, back: bool) -> Transfer:
        if self.is_sender and self.is_receiver:
            raise BridgeError(f"rank {self.rank} is on both sides of {self}; use transfer()")
        if given is None and (self.is_receiver if back else self.is_sender):
            sent, verb = ("gradients", "send_backward()") if back else ("activations", "send_forward()")
            raise BridgeError(f"rank {self.rank} sends {sent} over {self}; call {verb}")
        self.check_takes_part()
        if given is not None and not (self.is_receiver if back else self.is_sender):
            received, verb = ("gradients", "recv_backward()") if back else ("activations", "recv_forward()")
            raise BridgeError(f"rank {self.rank} receives {received} over {self}; call {verb}")
        return self.transfer(given, spec, back=back, position=position)

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
            raise BridgeError(f"rank {self.rank} is on neither side of {self}")
