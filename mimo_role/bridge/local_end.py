"""One rank's end of a bridge: what it gives and takes in batches of one spec, in one direction."""

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import torch

from mimo_role.bridge.expected_batch import named
from mimo_role.bridge.frames import BatchKey, Position
from mimo_role.bridge.handshake import ActivationSpec, Description
from mimo_role.bridge.plain_tensor import plain
from mimo_role.errors import BridgeError
from mimo_role.resharding.samples import Endpoint, Side
from mimo_role.resharding.transfer_plan import Stream, Transfer, route


class Part(NamedTuple):
    """What one message carries, in this rank's flat tensor."""

    peer: int
    stream: int
    """Its number among the streams of its direction."""
    start: int
    stop: int
    """Elements of the stream."""
    pieces: tuple[tuple[int, int], ...]
    """Where they lie: first element and end of each piece, in order."""

    @classmethod
    def of(cls, transfer: Transfer, stream: Stream, width: int) -> "Part":
        """Of a transfer of a stream whose rows have `width` elements."""
        pieces, passed = [], 0
        for run in stream.runs:
            start, stop = max(transfer.start - passed, 0), min(transfer.stop - passed, len(run) * width)
            if start < stop:
                pieces.append((run.start * width + start, run.start * width + stop))
            passed += len(run) * width
        return cls(transfer.peer, transfer.stream, transfer.start, transfer.stop, tuple(pieces))


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
        self._ends = source, destination
        self._sides = sides
        self._sender, self._receiver = sides[::-1] if back else sides
        self.route = route(rank, self._sender, self._receiver, spec.width)
        self.given, self.taken = (
            None if place is None else spec.shape_at(side, place)
            for side in (self._sender, self._receiver)
            for place in [side.endpoint.place(rank)]
        )
        """The shapes of what this rank gives and takes, if it does."""
        streams, width = (self.route.send_streams, self.route.receive_streams), spec.width
        self.sends, self.receives, self.hand_on, self.take_over = (
            tuple(Part.of(transfer, own[transfer.stream], width) for transfer in transfers if transfer.peer != rank)
            for transfers, own in (
                (self.route.sends, streams[0]),
                (self.route.receives, streams[1]),
                (self.route.hand_on, streams[1]),
                (self.route.take_over, streams[1]),
            )
        )
        """What this rank exchanges with others."""
        self.stays = tuple(
            zip(
                (Part.of(here, streams[0][here.stream], width) for here in self.route.sends if here.peer == rank),
                (Part.of(there, streams[1][there.stream], width) for there in self.route.receives if there.peer == rank),
                strict=True,
            )
        )
        """What is on this rank already: where it lies, and where it goes."""
        self.apart = tuple(len(stream.runs) > 1 and not stream.cuts for stream in streams[1])
        """Of each stream that arrives, whether its messages need memory of their own, beside the result."""
        self.sent_to, self.received_from, self.handed_to, self.taken_over_from = map(
            _elements_by_peer, (self.sends, self.receives, self.hand_on, self.take_over)
        )
        """Elements by peer."""
        self._descriptions: dict[tuple[int, int], bytes] = {}

    @cached_property
    def place(self) -> str:
        """The bridge and this rank, for messages."""
        return f"{self}: {self.name_of(self._rank)}"

    def name_of(self, rank: int) -> str:
        """A rank of either side in words."""
        for side in (self._sender, self._receiver):
            if (place := side.endpoint.place(rank)) is not None:
                return f"rank {rank} ({side.endpoint.module} lane {place.lane})"
        return f"rank {rank}"

    def description_to(self, peer: int) -> bytes:
        """What this rank and a peer that it sends to must agree on, as bytes."""
        return self._described((peer, self._rank) if self.back else (self._rank, peer))

    def description_from(self, peer: int) -> bytes:
        """The same for a peer that it receives from."""
        return self._described((self._rank, peer) if self.back else (peer, self._rank))

    def difference(self, peer: int, theirs: bytes) -> tuple[str, str] | None:
        """What this rank expects and what a peer has described, in words; `None` if they fit."""
        return self._description.difference(*((self._rank, peer) if self.back else (peer, self._rank)), theirs)

    def describe_receive(self, peer: int, key: BatchKey, position: Position) -> str:
        """What this rank waits for from a peer, for messages."""
        samples = self._samples_with(peer, self.route.receives, self.route.receive_streams)
        samples = samples or self._samples_with(peer, self.route.take_over, self.route.receive_streams)
        return f"{self.place} waits for {samples}{named(key, position)} from {self.name_of(peer)}"

    def describe_send(self, peer: int, key: BatchKey, position: Position) -> str:
        """What this rank has sent a peer, for messages."""
        samples = self._samples_with(peer, self.route.sends, self.route.send_streams)
        samples = samples or self._samples_with(peer, self.route.hand_on, self.route.receive_streams)
        return f"{self.place} sent {samples}{named(key, position)}, which {self.name_of(peer)} has not taken"

    def as_plain(self, given: torch.Tensor) -> torch.Tensor:
        """What this rank gives, or on a rank that only receives takes, as a plain tensor.

        Raises:
            BridgeError: a kind of tensor that cannot cross.
        """
        return plain(given, self.given, self._sender.endpoint, f"{self.place} sends {self._what}")

    def checked(self, given: torch.Tensor | None) -> torch.Tensor:
        """What this rank gives, as a plain tensor.

        Raises:
            BridgeError: it is missing, of another shape, dtype or device, or a kind of tensor that cannot cross.
        """
        what, expected = self._what, self.given
        assert expected is not None
        if given is None:
            raise BridgeError(f"rank {self._rank} sends over {self}; pass its lane's {what}")
        given = self.as_plain(given)
        if tuple(given.shape) != expected:
            wanted = [*expected[:1], "..."] if given.shape[1:] == expected[1:] else list(expected)
            raise BridgeError(
                f"{self._holding(self._sender)} of a batch of {self.spec.samples.count}, but its {what} are "
                f"{list(given.shape)}; pass [{', '.join(map(str, wanted))}]"
            )
        if given.dtype != self.spec.dtype:
            raise BridgeError(f"{self} carries {self.spec.dtype} in this batch, but the {what} are {given.dtype}")
        if given.device.type != self._device.type:
            raise BridgeError(f"{self} carries tensors on {self._device.type}, not on {given.device.type}")
        return given

    def __str__(self) -> str:
        return name_of_bridge(*self._ends)

    @property
    def _what(self) -> str:
        return "gradients" if self.back else "activations"

    @cached_property
    def _description(self) -> Description:
        return Description(*self._sides, self.spec)

    def _described(self, ranks: tuple[int, int]) -> bytes:
        """Of what crosses between two ranks, the one on the source's side first."""
        if ranks not in self._descriptions:
            self._descriptions[ranks] = self._description.between(*ranks)
        return self._descriptions[ranks]

    def _holding(self, side: Side) -> str:
        place = side.endpoint.place(self._rank)
        assert place is not None
        own = side.of_lane(place.lane)
        held = f"samples {own[0]}-{own[-1]}" if own and own[-1] - own[0] == len(own) - 1 else f"{len(own) or 'no'} samples"
        return f"lane {place.lane} of {self} holds {held}"

    def _samples_with(self, peer: int, transfers: Iterable[Transfer], streams: tuple[Stream, ...]) -> str:
        numbers = [number for item in transfers if item.peer == peer for number in streams[item.stream][2:4]]
        if not numbers:
            return ""
        first, last = min(numbers), max(numbers)
        return f"sample {first} of " if first == last else f"samples {first}-{last} of "


def name_of_bridge(source: Endpoint, destination: Endpoint) -> str:
    """A bridge in words."""
    return f"the bridge {source.module} stage {source.stage} -> {destination.module} stage {destination.stage}"


def _elements_by_peer(parts: Iterable[Part]) -> dict[int, int]:
    elements: Counter[int] = Counter()
    for part in parts:
        elements[part.peer] += part.stop - part.start
    return dict(elements)
