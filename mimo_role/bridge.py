"""Activations and gradients between two stages, through autograd."""

from typing import Any

import torch
import torch.distributed as dist

from mimo_role.errors import BridgeError
from mimo_role.routing import Endpoint, lane_samples, receives, sends

_INTRODUCTION = 16
"""Numbers in the one message that tells a sample's dtype and shape: its dtype, its dimensions, -1."""

_DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


class Bridge:
    """Moves a batch of activations from one stage to another, and their gradients back.

    The two sides may have any numbers of lanes. Each lane of a side holds a contiguous part of the global batch,
    `routing.lane_samples(batch_size, lanes, lane)`; tp ranks of a lane hold equal copies. Bridges come from
    `RoleContext.bridge`; every rank of both sides calls them in the same order.
    """

    def __init__(self, source: Endpoint, destination: Endpoint, rank: int, device: torch.device, tag: int) -> None:
        self.source = source
        self.destination = destination
        self._rank = rank
        self._device = device
        self._tag = tag
        self._introduced = False
        self._in_flight: list[tuple[dist.Work, torch.Tensor]] = []

    @property
    def is_sender(self) -> bool:
        """Whether this rank gives activations."""
        return self.source.place(self._rank) is not None

    @property
    def is_receiver(self) -> bool:
        """Whether this rank takes activations."""
        return self.destination.place(self._rank) is not None

    def __call__(
        self,
        activations: torch.Tensor | None = None,
        *,
        batch_size: int,
        sample_shape: tuple[int, ...] | None = None,
        dtype: torch.dtype | None = None,
        requires_grad: bool = True,
    ) -> torch.Tensor:
        """Send and receive one batch.

        Args:
            activations: `[samples of this lane, *sample_shape]`, on a sender.
            batch_size: samples in the global batch, over all lanes.
            sample_shape, dtype: of the activations; needed on a rank that only receives.
            requires_grad: whether gradients come back; the same on both sides. Under `torch.no_grad()` none do.

        Returns:
            On a receiver, its lane's activations, `[samples of its lane, *sample_shape]`; their gradients go back when
            autograd reaches them. On a rank that only sends, a zero: its `backward()` waits for the gradients and
            carries on into `activations`.

        Raises:
            BridgeError: this rank is on neither side, or the tensor does not fit.
        """
        if self.is_sender:
            activations = self._checked(activations, batch_size)
            sample_shape, dtype = tuple(activations.shape[1:]), activations.dtype
        elif not self.is_receiver:
            raise BridgeError(f"rank {self._rank} takes no part in {self}")
        elif activations is not None:
            raise BridgeError(f"rank {self._rank} only receives over {self}; pass no activations")
        if sample_shape is None or dtype is None:
            raise BridgeError(f"rank {self._rank} only receives over {self}; it needs sample_shape and dtype")
        if len(sample_shape) > _INTRODUCTION - 2 or dtype not in _DTYPES:
            raise BridgeError(f"{self} does not carry samples of {dtype} {list(sample_shape)}")
        # A sender whose activations need no gradient must still take what the other side sends.
        anchor = torch.zeros((), dtype=dtype, device=self._device, requires_grad=requires_grad and dtype.is_floating_point)
        with torch.set_grad_enabled(requires_grad and torch.is_grad_enabled()):
            crossed = _Cross.apply(self, batch_size, sample_shape, anchor, activations)  # type: ignore[no-untyped-call]
        assert isinstance(crossed, torch.Tensor)
        return crossed

    def wait(self) -> None:
        """Wait until all that was sent has been taken.

        Raises:
            RuntimeError: a peer did not take it within the group's timeout.
        """
        for work, _ in self._in_flight:
            work.wait()
        self._in_flight.clear()

    def __str__(self) -> str:
        return (
            f"the bridge {self.source.module} stage {self.source.stage} -> "
            f"{self.destination.module} stage {self.destination.stage}"
        )

    def _checked(self, activations: torch.Tensor | None, batch_size: int) -> torch.Tensor:
        place = self.source.place(self._rank)
        assert place is not None
        samples = lane_samples(batch_size, self.source.lanes, place[0])
        if activations is None:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass its lane's activations")
        if activations.shape[:1] != (len(samples),):
            raise BridgeError(
                f"lane {place[0]} of {self} holds samples {samples.start}-{samples.stop - 1} of a batch of {batch_size}, "
                f"but its activations are {list(activations.shape)}; pass [{len(samples)}, ...]"
            )
        if activations.device.type != self._device.type:
            raise BridgeError(f"{self} carries tensors on {self._device.type}, not on {activations.device.type}")
        return activations

    def _move(self, tensor: torch.Tensor | None, batch_size: int, like: torch.Tensor, *, back: bool) -> torch.Tensor | None:
        """Post all sends and receives of one direction; return what was received once it is there."""
        sender, receiver = (self.destination, self.source) if back else (self.source, self.destination)
        tag = 2 * self._tag + back
        received, operations = None, []
        self.wait()
        if not self._introduced:
            self._introduce(like)
            self._introduced = True
        if (place := receiver.place(self._rank)) is not None:
            own = lane_samples(batch_size, receiver.lanes, place[0])
            received = like.new_empty((len(own), *like.shape[1:]))
            for transfer in receives(self._rank, sender, receiver, batch_size):
                part = received[transfer.start - own.start : transfer.stop - own.start]
                if transfer.peer != self._rank:
                    operations.append(dist.P2POp(dist.irecv, part, transfer.peer, tag=tag))
        if (place := sender.place(self._rank)) is not None:
            assert tensor is not None
            held = lane_samples(batch_size, sender.lanes, place[0])
            # A copy: what is sent may be read after this call has returned.
            tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
            for transfer in sends(self._rank, sender, receiver, batch_size):
                part = tensor[transfer.start - held.start : transfer.stop - held.start]
                if transfer.peer != self._rank:
                    operations.append(dist.P2POp(dist.isend, part, transfer.peer, tag=tag))
                elif received is not None:
                    received[transfer.start - own.start : transfer.stop - own.start] = part
        self._run(operations)
        return received

    def _introduce(self, like: torch.Tensor) -> None:
        """Once, before the first batch: what both sides take a sample to be. gloo compares neither shapes nor dtypes.

        Every sender tells every receiver of its pairing: one pass over a batch with a sample for each lane of both sides.
        """
        lanes = self.source.lanes * self.destination.lanes
        mine = torch.zeros(_INTRODUCTION, dtype=torch.int64, device=self._device)
        mine[: len(like.shape) + 1] = torch.tensor([_DTYPES.index(like.dtype), *like.shape[1:], -1], device=self._device)
        operations = [
            dist.P2POp(dist.isend, mine, peer, tag=2 * self._tag)
            for peer in {transfer.peer for transfer in sends(self._rank, self.source, self.destination, lanes)} - {self._rank}
        ]
        peers = {transfer.peer for transfer in receives(self._rank, self.source, self.destination, lanes)} - {self._rank}
        told = {peer: torch.empty_like(mine) for peer in peers}
        operations += [dist.P2POp(dist.irecv, theirs, peer, tag=2 * self._tag) for peer, theirs in told.items()]
        self._run(operations)
        for peer, theirs in told.items():
            if not torch.equal(theirs, mine):
                raise BridgeError(
                    f"rank {self._rank} expects samples of {_told(mine)} over {self}, but rank {peer} sends {_told(theirs)}"
                )

    def _run(self, operations: list[dist.P2POp]) -> None:
        if not operations:
            return
        works = dist.batch_isend_irecv(operations)
        if len(works) != len(operations):  # NCCL coalesces a batch into one
            for work in works:
                work.wait()
            return
        for operation, work in zip(operations, works, strict=True):
            if operation.op is dist.irecv:
                work.wait()
            else:
                self._in_flight.append((work, operation.tensor))


def _told(message: torch.Tensor) -> str:
    dtype, *dimensions = message.tolist()
    return f"{_DTYPES[dtype]} {dimensions[: dimensions.index(-1)]}"


class _Cross(torch.autograd.Function):
    """The bridge as one autograd node: forward moves activations, backward moves their gradients the other way."""

    @staticmethod
    def forward(
        ctx: Any,
        bridge: Bridge,
        batch_size: int,
        sample_shape: tuple[int, ...],
        anchor: torch.Tensor,
        activations: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.bridge, ctx.batch_size = bridge, batch_size
        ctx.like = anchor.new_empty((0, *sample_shape))
        received = bridge._move(activations, batch_size, ctx.like, back=False)
        return anchor.new_zeros(()) if received is None else received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        bridge: Bridge = ctx.bridge
        gradient = gradients[0] if bridge.is_receiver else None
        return None, None, None, None, bridge._move(gradient, ctx.batch_size, ctx.like, back=True)
