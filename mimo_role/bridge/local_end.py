"""One rank's end of a bridge: what it sends and receives in batches of one spec, in one direction."""

from collections.abc import Iterable, Sequence
from functools import cached_property

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.bridge.expected_batch import named
from mimo_role.bridge.frames import BatchKey, Position
from mimo_role.bridge.handshake import Description
from mimo_role.bridge.parts import Parts
from mimo_role.bridge.plain_tensor import plain
from mimo_role.errors import BridgeError
from mimo_role.resharding.endpoint import Endpoint, Side
from mimo_role.resharding.overlap import Overlap
from mimo_role.resharding.transfer_plan import Chunk, plan_transfers


class LocalEnd:
    """A pure value but for the checks of tensors; bridges keep it for further batches of the same spec."""

    def __init__(
        self, rank: int, device: torch.device, source: Endpoint, destination: Endpoint, spec: ActivationSpec, *, back: bool
    ) -> None:
        """
        Args:
            rank: this process's.
            device: where its tensors live.
            source, destination: the bridge's two ends.
            spec: of the batches.
            back: from destination to source.

        Raises:
            BridgeError: an assignment of samples names a lane that a side does not have.
        """
        for end, is_source in ((source, True), (destination, False)):
            spec.samples.check_lanes(end.lanes, source=is_source)
        sides = Side(source, spec.samples, True), Side(destination, spec.samples, False)
        self.spec = spec
        self.back = back
        self._rank = rank
        self._device = device
        self._sides = sides
        self._sender, self._receiver = sides[::-1] if back else sides
        self.plan = plan_transfers(rank, self._sender, self._receiver, spec.width)
        self.parts = Parts.of(self.plan, rank, spec.width)
        self.sent_shape, self.received_shape = (
            None if place is None else spec.shape_at(side, place)
            for side in (self._sender, self._receiver)
            for place in [side.endpoint.place_of(rank)]
        )
        """The shapes of what this rank sends and receives, if it does."""
        self._descriptions: dict[tuple[int, int], bytes] = {}

    @cached_property
    def place(self) -> str:
        """The bridge and this rank, for messages."""
        return f"{self}: {self.name_of(self._rank)}"

    def name_of(self, rank: int) -> str:
        """A rank of either side, its module and its lane, for messages."""
        for side in (self._sender, self._receiver):
            if (place := side.endpoint.place_of(rank)) is not None:
                return f"rank {rank} ({side.endpoint.module} lane {place.lane})"
        return f"rank {rank}"

    def description_to(self, peer: int) -> bytes:
        """What this rank and a peer to which it sends must agree on, as bytes."""
        return self._described((peer, self._rank) if self.back else (self._rank, peer))

    def description_from(self, peer: int) -> bytes:
        """The same for a peer from which it receives."""
        return self._described((self._rank, peer) if self.back else (peer, self._rank))

    def difference(self, peer: int, theirs: bytes) -> tuple[str, str] | None:
        """What this rank expects and what a peer has described, for messages; `None` if they agree."""
        return self._description.difference(*((self._rank, peer) if self.back else (peer, self._rank)), theirs)

    def describe_receive(self, peer: int, key: BatchKey, position: Position) -> str:
        """What this rank waits for from a peer, for messages."""
        samples = self._samples_with(peer, self.plan.receives, self.plan.receive_overlaps)
        samples = samples or self._samples_with(peer, self.plan.replica_receives, self.plan.receive_overlaps)
        return f"{self.place} waits for {samples}{named(key, position)} from {self.name_of(peer)}"

    def describe_send(self, peer: int, key: BatchKey, position: Position) -> str:
        """What this rank has sent a peer, for messages."""
        samples = self._samples_with(peer, self.plan.sends, self.plan.send_overlaps)
        samples = samples or self._samples_with(peer, self.plan.replica_sends, self.plan.receive_overlaps)
        return f"{self.place} sent {samples}{named(key, position)}, which {self.name_of(peer)} has not received"

    def as_plain(self, given: torch.Tensor) -> torch.Tensor:
        """What this rank sends, or receives if it sends nothing, as a plain tensor.

        Raises:
            BridgeError: a kind of tensor that cannot be transferred.
        """
        return plain(given, self.sent_shape, self._sender.endpoint, lambda: f"{self.place} sends {self._what}")

    def checked(self, given: torch.Tensor | None) -> torch.Tensor:
        """What this rank sends, as a plain tensor.

        Raises:
            BridgeError: it is missing, of another shape, dtype or device, or a kind of tensor that cannot be transferred.
        """
        what, expected = self._what, self.sent_shape
        assert expected is not None
        if given is None:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass its lane's {what}")
        given = self.as_plain(given)
        if tuple(given.shape) != expected:
            wanted = [*expected[:1], "..."] if given.shape[1:] == expected[1:] else list(expected)
            raise BridgeError(
                f"{self._samples_of_lane(self._sender)} of a batch of {self.spec.samples.count}, but its {what} are "
                f"{list(given.shape)}; pass [{', '.join(map(str, wanted))}]"
            )
        if given.dtype != self.spec.dtype:
            raise BridgeError(f"{self} transfers {self.spec.dtype} in this batch, but the {what} are {given.dtype}")
        if given.device.type != self._device.type:
            raise BridgeError(f"{self} transfers tensors on {self._device.type}, not on {given.device.type}")
        return given

    def __str__(self) -> str:
        source, destination = self._sides
        return name_of_bridge(source.endpoint, destination.endpoint)

    @property
    def _what(self) -> str:
        return "gradients" if self.back else "activations"

    @cached_property
    def _description(self) -> Description:
        return Description(*self._sides, self.spec)

    def _described(self, ranks: tuple[int, int]) -> bytes:
        """The description of a batch between two ranks, the source's first."""
        if ranks not in self._descriptions:
            self._descriptions[ranks] = self._description.between(*ranks)
        return self._descriptions[ranks]

    def _samples_of_lane(self, side: Side) -> str:
        place = side.endpoint.place_of(self._rank)
        assert place is not None
        own = side.of_lane(place.lane)
        held = f"samples {own[0]}-{own[-1]}" if own and own[-1] - own[0] == len(own) - 1 else f"{len(own) or 'no'} samples"
        return f"lane {place.lane} of {self} holds {held}"

    def _samples_with(self, peer: int, chunks: Iterable[Chunk], overlaps: Sequence[Overlap]) -> str:
        found = [overlaps[chunk.overlap] for chunk in chunks if chunk.peer == peer]
        if not found:
            return ""
        first, last = min(overlap.first_sample for overlap in found), max(overlap.last_sample for overlap in found)
        return f"sample {first} of " if first == last else f"samples {first}-{last} of "


def name_of_bridge(source: Endpoint, destination: Endpoint) -> str:
    """A bridge, for messages."""
    return f"the bridge {source.module} stage {source.stage} -> {destination.module} stage {destination.stage}"
