"""Activations and gradients between two stages: single steps for a schedule, or one call through autograd."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from mimo_role.activations import ActivationSpec, Introduction, exchange
from mimo_role.buffers import BufferPool
from mimo_role.crossing import Crossing, Message, Step, Ways, start_together
from mimo_role.errors import BridgeError
from mimo_role.outbox import Outbox
from mimo_role.routing import Route, route
from mimo_role.samples import Endpoint, Samples, Side
from mimo_role.tags import BRIDGES

_THE_WORLDS = Ways()


class Bridge:
    """Moves batches of activations from one stage to another, and their gradients back.

    The two sides may have any grids, on ranks of their own or on the same. Bridges come from `RoleContext.bridge`; every rank
    of both sides calls them in the same order. Activations have a row for each token, sample after sample (`ActivationSpec`);
    a rank's tensor holds its own lane's samples, and of these the tokens that it owns.

    Calling a bridge is one autograd node. `send_forward` and its companions are the steps of a pipeline schedule; each makes a
    `Crossing`, which goes on beside other work between its `start()` and `wait()`. Keep it until then: what is dropped does not
    arrive. The first forward on one side is the first on the other, and so on; backwards alike, but for those of autograd,
    which belong to their forward in whatever order they come.
    """

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        rank: int,
        device: torch.device,
        number: int,
        ways: Ways = _THE_WORLDS,
    ) -> None:
        """
        Args:
            source, destination: the two ends.
            rank: this process's.
            device: where its tensors live.
            number: of this bridge among all of the world; part of its messages' tags.
            ways: the groups that messages take.

        Raises:
            BridgeError: more bridges than messages can be told apart for.
        """
        if number >= BRIDGES:
            raise BridgeError(f"bridge number {number}: messages can be told apart for {BRIDGES} bridges of one world")
        self.source = source
        self.destination = destination
        self._rank = rank
        self._device = device
        self._number = number
        self._ways = ways
        self._pool = BufferPool(device)
        self._introduction: Introduction | None = None
        self._outbox = Outbox(device)
        self._next = {"forward": 0, "back": 0, "exchange": 0}
        """The numbers of the batches to come."""
        self._plan = lru_cache(maxsize=64)(self._make_plan)
        self._on_source, self._on_destination = source.place(rank), destination.place(rank)

    @property
    def is_sender(self) -> bool:
        """Whether this rank gives activations."""
        return self._on_source is not None

    @property
    def is_receiver(self) -> bool:
        """Whether this rank takes activations."""
        return self._on_destination is not None

    def __call__(
        self,
        activations: torch.Tensor | None = None,
        *,
        spec: ActivationSpec | None = None,
        batch_size: int | None = None,
        sample_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        requires_grad: bool = True,
    ) -> torch.Tensor:
        """Send and receive one batch.

        Args:
            activations: this rank's, on a sender.
            spec: what crosses; or for samples of one shape the next three instead.
            batch_size: samples in the global batch, over all lanes.
            sample_shape, dtype: of the activations; needed on a rank that only receives.
            requires_grad: whether gradients come back; the same on both sides. Under `torch.no_grad()` none do.

        Returns:
            On a receiver, its lane's activations; their gradients go back when autograd reaches them. On a rank that only
            sends, a zero: its `backward()` waits for the gradients and carries on into `activations`.

        Raises:
            BridgeError: this rank is on neither side, the tensor does not fit, or the other side is gone.
        """
        if spec is None:
            spec = self._spec_of(activations, batch_size, sample_shape, dtype)
        return cross_together([Passage(self, spec, activations)], requires_grad=requires_grad)[0]

    def send_forward(self, activations: torch.Tensor, spec: ActivationSpec) -> Crossing:
        """Give activations. They must not change before the crossing's `wait()` has returned.

        Raises:
            BridgeError: this rank is not on the sending side alone, or the tensor does not fit.
        """
        return self._one_sided(activations, spec, back=False)

    def recv_forward(self, spec: ActivationSpec) -> Crossing:
        """Take activations: the crossing's `wait()` returns them.

        Raises:
            BridgeError: this rank is not on the receiving side alone.
        """
        return self._one_sided(None, spec, back=False)

    def send_backward(self, gradients: torch.Tensor, spec: ActivationSpec) -> Crossing:
        """Give gradients, on a rank that took activations. They must not change before `wait()` has returned.

        Raises:
            BridgeError: this rank is not on the receiving side alone, or the tensor does not fit.
        """
        return self._one_sided(gradients, spec, back=True)

    def recv_backward(self, spec: ActivationSpec) -> Crossing:
        """Take gradients, on a rank that gave activations: the crossing's `wait()` returns them.

        Raises:
            BridgeError: this rank is not on the sending side alone.
        """
        return self._one_sided(None, spec, back=True)

    def exchange_spec(self, spec: ActivationSpec | None = None, *, samples: Samples | None = None) -> ActivationSpec:
        """For batches of which the receivers do not know the token counts or the shape: senders tell them, in one message.

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
        self._check_takes_part()
        if self.is_sender and spec is None:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass spec")
        known = samples if spec is None else spec.samples
        if known is None:
            raise BridgeError(f"rank {self._rank} only receives over {self}; pass samples")
        sides = Side(self.source, known, True), Side(self.destination, known, False)
        number = self._number_of("exchange", None)
        return exchange(*sides, self._rank, self._device, spec, self._number, number, self._ways.forward, str(self))

    def wait(self) -> None:
        """Wait until all that was sent has been taken.

        Raises:
            BridgeError: a peer did not take it within the timeout, or has died.
        """
        self._outbox.wait()

    def __str__(self) -> str:
        return (
            f"the bridge {self.source.module} stage {self.source.stage} -> "
            f"{self.destination.module} stage {self.destination.stage}"
        )

    def crossing(
        self,
        given: torch.Tensor | None,
        spec: ActivationSpec,
        *,
        back: bool,
        copies: bool = False,
        number: int | None = None,
    ) -> Crossing:
        """This rank's part of a batch in one direction, whichever sides it is on; where on both, what it has stays there.

        Args:
            given: activations on a sender, or with `back` gradients on a receiver. They must not change before the crossing's
                `wait()` has returned.
            spec: what crosses.
            back: from destination to source.
            copies: whether to copy what is sent, so that `given` may change at once.
            number: of the batch, the same on all ranks; default: one more than that of the last in this direction.

        Raises:
            BridgeError: this rank is on neither side, or the tensor does not fit.
        """
        self._check_takes_part()
        plan = self._plan(spec, back)
        held = needed = None
        if plan.given is not None:
            held = self._checked(given, spec, plan).detach().contiguous().view(plan.route.rows_held, spec.width)
        elif given is not None:
            what = "gradients" if back else "activations"
            raise BridgeError(f"rank {self._rank} only receives over {self}; pass no {what}")
        if plan.taken is not None:
            needed = self._pool.take(plan.taken, spec.dtype)
        if self._introduction is None:
            ends = self.source, self.destination
            self._introduction = Introduction(*ends, self._rank, self._device, spec, self._number, self._ways.forward)
        introduction = self._introduction
        return Crossing(
            plan.route,
            self._rank,
            held,
            needed,
            width=spec.width,
            bridge=self._number,
            back=back,
            batch=self._number_of("back" if back else "forward", number),
            way=self._ways.back if back else self._ways.forward,
            way_among_copies=self._ways.among_copies,
            pool=self._pool,
            explain=lambda message: self._explain(message, plan),
            check=lambda: introduction.check(str(self)),
            copies=copies,
        )

    def _one_sided(self, given: torch.Tensor | None, spec: ActivationSpec, *, back: bool) -> Crossing:
        if self.is_sender and self.is_receiver:
            raise BridgeError(f"rank {self._rank} is on both sides of {self}; use crossing()")
        if given is None and (self.is_receiver if back else self.is_sender):
            taken, verb = ("gradients", "send_backward") if back else ("activations", "send_forward")
            raise BridgeError(f"rank {self._rank} gives {taken} over {self} and takes none; use {verb}")
        self._check_takes_part()
        if given is not None and not (self.is_receiver if back else self.is_sender):
            given_kind, verb = ("gradients", "recv_backward") if back else ("activations", "recv_forward")
            raise BridgeError(f"rank {self._rank} takes {given_kind} over {self} and gives none; use {verb}")
        return self.crossing(given, spec, back=back)

    def _number_of(self, kind: str, number: int | None) -> int:
        """The batch's number, this one or the next, counted on from it."""
        taken = self._next[kind] if number is None else number
        self._next[kind] = max(self._next[kind], taken + 1)
        return taken

    def _make_plan(self, spec: ActivationSpec, back: bool) -> "_Plan":
        for end, is_source in ((self.source, True), (self.destination, False)):
            spec.samples.check_lanes(end.lanes, source=is_source)
        sides = Side(self.source, spec.samples, True), Side(self.destination, spec.samples, False)
        sender, receiver = sides[::-1] if back else sides
        given, taken = (
            None if place is None else spec.shape_at(side, place)
            for side in (sender, receiver)
            for place in [side.endpoint.place(self._rank)]
        )
        return _Plan(sender, receiver, route(self._rank, sender, receiver, spec.width), given, taken)

    def _check_takes_part(self) -> None:
        if not (self.is_sender or self.is_receiver):
            raise BridgeError(f"rank {self._rank} takes no part in {self}")

    def _checked(self, given: torch.Tensor | None, spec: ActivationSpec, plan: "_Plan") -> torch.Tensor:
        what = "activations" if plan.sender.is_source else "gradients"
        expected = plan.given
        assert expected is not None
        if given is None:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass its lane's {what}")
        if tuple(given.shape) != expected:
            wanted = [*expected[:1], "..."] if given.shape[1:] == expected[1:] else list(expected)
            raise BridgeError(
                f"{self._holding(plan.sender)} of a batch of {spec.samples.count}, but its {what} are {list(given.shape)}; "
                f"pass [{', '.join(map(str, wanted))}]"
            )
        if given.dtype != spec.dtype:
            raise BridgeError(f"{self} carries {spec.dtype} in this batch, but the {what} are {given.dtype}")
        if given.device.type != self._device.type:
            raise BridgeError(f"{self} carries tensors on {self._device.type}, not on {given.device.type}")
        return given

    def _holding(self, side: Side) -> str:
        place = side.endpoint.place(self._rank)
        assert place is not None
        own = side.of_lane(place.lane)
        held = f"samples {own[0]}-{own[-1]}" if own and own[-1] - own[0] == len(own) - 1 else f"{len(own) or 'no'} samples"
        return f"lane {place.lane} of {self} holds {held}"

    def _explain(self, message: Message, plan: "_Plan") -> str:
        sender, receiver = plan.sender, plan.receiver
        tensor = message.operation.tensor
        peer, first, last = message.transfer.peer, message.stream.first_sample, message.stream.last_sample
        samples = f"sample {first}" if first == last else f"samples {first}-{last}"
        if message.step in (Step.SEND, Step.HAND_ON):
            did, theirs = f"gave {samples} to", receiver
        else:
            did, theirs = f"waited for {samples} from", sender if message.step is Step.RECEIVE else receiver
        mine = sender if message.step is Step.SEND else receiver
        return (
            f"{self}: {_where(self._rank, mine)} {did} {_where(peer, theirs)} in vain; that rank has died, never came to this "
            f"batch or did not call backward(), or takes it for something else than {tensor.numel()} elements of {tensor.dtype}"
        )

    def _spec_of(
        self,
        activations: torch.Tensor | None,
        batch_size: int | None,
        sample_shape: tuple[int, ...] | None,
        dtype: torch.dtype | None,
    ) -> ActivationSpec:
        self._check_takes_part()
        if batch_size is None:
            raise BridgeError(f"{self} needs a spec, or batch_size")
        if activations is not None and self.is_sender:
            sample_shape, dtype = self._sample_shape(activations, sample_shape), activations.dtype
        elif self.is_sender:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass its lane's activations")
        elif activations is not None:
            raise BridgeError(f"rank {self._rank} only receives over {self}; pass no activations")
        if sample_shape is None or dtype is None:
            raise BridgeError(f"rank {self._rank} only receives over {self}; it needs sample_shape and dtype")
        return ActivationSpec.of(batch_size, tuple(sample_shape), dtype)

    def _sample_shape(self, activations: torch.Tensor, whole: tuple[int, ...] | None) -> tuple[int, ...]:
        """A whole sample's shape. A rank that holds some of each sample's tokens cannot know how many there are."""
        if self.source.cp > 1 or self.source.split.sequence_parallel:
            if whole is None:
                raise BridgeError(f"rank {self._rank} holds parts of samples over {self}; it needs sample_shape, of whole ones")
            return whole
        return tuple(activations.shape[1:])


class _Plan(NamedTuple):
    """What this rank does for batches of one spec, in one direction."""

    sender: Side
    receiver: Side
    route: Route
    given: tuple[int, ...] | None
    """The shape of what it gives, if it does."""
    taken: tuple[int, ...] | None


class Passage(NamedTuple):
    """One bridge's part of a call that crosses several."""

    bridge: Bridge
    spec: ActivationSpec
    activations: torch.Tensor | None = None
    """On a sender."""


def cross_together(passages: Sequence[Passage], *, requires_grad: bool = True) -> list[torch.Tensor]:
    """Call several bridges at once: all transfers go on at the same time, and so do those of their gradients.

    Args:
        passages: the bridges in which this rank takes part, in the same order on all ranks.
        requires_grad: whether gradients come back.

    Returns:
        What each bridge's call returns. They are one autograd node: a sender passes all its zeros to `torch.autograd.backward`.

    Raises:
        BridgeError: as a bridge's call.
    """
    anchors = []
    for bridge, spec, _ in passages:
        # A sender whose activations need no gradient must still take what the other side sends.
        needs_grad = requires_grad and spec.dtype.is_floating_point
        anchors.append(torch.zeros((), dtype=spec.dtype, device=bridge._device, requires_grad=needs_grad))
    with torch.set_grad_enabled(requires_grad and torch.is_grad_enabled()):
        given = [passage.activations for passage in passages]
        return list(_Cross.apply(passages, *anchors, *given))  # type: ignore[no-untyped-call]


class _Cross(torch.autograd.Function):
    """Bridges as one autograd node: forward moves activations, backward moves their gradients the other way."""

    @staticmethod
    def forward(ctx: Any, passages: Sequence[Passage], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        anchors, given = tensors[: len(passages)], tensors[len(passages) :]
        ctx.passages = [passage._replace(activations=None) for passage in passages]
        # Autograd may come to the batches in any order; their numbers tell which gradients belong to which.
        ctx.numbers = [passage.bridge._number_of("forward", None) for passage in passages]
        arrived = _move(ctx.passages, ctx.numbers, given, back=False)
        return tuple(
            anchor.new_zeros(()) if tensor is None else tensor for tensor, anchor in zip(arrived, anchors, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        given = [
            gradient if passage.bridge.is_receiver else None for passage, gradient in zip(ctx.passages, gradients, strict=True)
        ]
        return None, *(None for _ in ctx.passages), *_move(ctx.passages, ctx.numbers, given, back=True)


def _move(
    passages: Sequence[Passage], numbers: Sequence[int], given: Sequence[torch.Tensor | None], *, back: bool
) -> list[torch.Tensor | None]:
    # Copies: the activations are the user's, who may change them, and autograd may add to a gradient once it has left here.
    crossings = [
        passage.bridge.crossing(tensor, passage.spec, back=back, copies=True, number=number)
        for passage, number, tensor in zip(passages, numbers, given, strict=True)
    ]
    start_together(crossings)
    arrived = [crossing.receive() for crossing in crossings]
    for passage, crossing in zip(passages, crossings, strict=True):
        passage.bridge._outbox.put(crossing)
    return arrived


def _where(rank: int, side: Side) -> str:
    place = side.endpoint.place(rank)
    assert place is not None
    return f"rank {rank} ({side.endpoint.module} lane {place.lane})"
