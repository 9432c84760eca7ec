"""What crosses a bridge, and how its two sides come to agree on it."""

import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.errors import BridgeError
from mimo_role.routing import Talk, talks
from mimo_role.samples import Endpoint, Place, Samples, Side
from mimo_role.tags import Purpose, tag_of

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

_HEADER = 16
"""Numbers that describe activations in a message: dtype, samples, form, shape, and an end mark."""

_PACKED, _DENSE, _SINGLE, _END = 0, 1, 2, -1
"""Forms of activations: tokens one after another, samples of equal length, samples of one token; and the end mark."""


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """The activations of one batch: what both sides of a bridge must know before it crosses.

    Packed, a rank's tensor is `[tokens of its samples, *token_shape]`, sample after sample; dense, which needs equally many
    tokens in each sample, `[samples, tokens, *token_shape]`. cp ranks and sequence-parallel ranks have their own tokens only.
    """

    samples: Samples
    token_shape: tuple[int, ...]
    dtype: torch.dtype
    is_dense: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            BridgeError: a dtype or a number of dimensions that bridges do not carry, or dense samples of unequal length.
        """
        object.__setattr__(self, "token_shape", _shape("token_shape", self.token_shape))
        if len(self.token_shape) > _HEADER - 5 or self.dtype not in _DTYPES:
            raise BridgeError(f"bridges do not carry tokens of {self.dtype} {list(self.token_shape)}")
        if self.is_dense and (not isinstance(self.samples.tokens, int) or self.samples.places is not None):
            raise BridgeError("dense activations have equally many tokens in each sample, and no places; pack them instead")

    @classmethod
    def of(cls, batch_size: int, sample_shape: tuple[int, ...], dtype: torch.dtype) -> "ActivationSpec":
        """Samples of one shape, split over lanes in contiguous ranges; of `[tokens, hidden]`, or any other shape."""
        sample_shape = _shape("sample_shape", sample_shape)
        if len(sample_shape) < 2:
            return cls(samples=Samples(batch_size), token_shape=sample_shape, dtype=dtype)
        return cls(samples=Samples(batch_size, sample_shape[0]), token_shape=sample_shape[1:], dtype=dtype, is_dense=True)

    @property
    def width(self) -> int:
        """Elements of one token."""
        return torch.Size(self.token_shape).numel()

    def shape_at(self, side: Side, place: Place) -> tuple[int, ...]:
        """The shape of the tensor of the rank at `place`."""
        if not self.is_dense:
            return (side.rows(place), *self.token_shape)
        of_each = sum(map(len, side.tokens(0, place)))
        return (len(side.of_lane(place.lane)), of_each, *self.token_shape)


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
        raise BridgeError(f"{name}={value} is one number; give all sizes, such as ({value},)")
    return tuple(value)


class Introduction:
    """Once, at a bridge's first batch: every destination rank compares what it expects with what each source lane sends.

    After that nothing is exchanged. Over gloo, which compares neither shapes nor dtypes, a later change of one side alone
    shows as a batch that does not come.
    """

    def __init__(
        self,
        source: Endpoint,
        destination: Endpoint,
        rank: int,
        device: torch.device,
        spec: ActivationSpec,
        bridge: int,
        way: dist.ProcessGroup | None,
    ) -> None:
        """Post the messages; nothing is waited for."""
        samples = Samples(math.lcm(source.lanes, destination.lanes))  # lanes that share any contiguous batch share one of these
        tells, hears = talks(rank, Side(source, samples, True), Side(destination, samples, False))
        self._rank = rank
        self._mine = [*_header(spec), _agreed(source, destination, spec)]
        self._sides = Side(source, spec.samples, True), Side(destination, spec.samples, False)
        told = [(talk, [*self._mine, _checksum(self._tokens(rank, talk.peer).values())]) for talk in tells]
        awaited = [(talk, len(self._mine) + 1) for talk in hears]
        self._conversation = _Conversation(rank, device, (bridge, Purpose.INTRODUCTION, 0), way, told, awaited)
        self._is_checked = False

    def _tokens(self, teller: int, hearer: int) -> dict[int, int]:
        """By sample, the token counts of what crosses from one rank's lane to the other's in the first batch."""
        source, destination = self._sides
        given, got = source.endpoint.place(teller), destination.endpoint.place(hearer)
        assert given is not None
        assert got is not None
        common = (sample for sample in source.of_lane(given.lane) if destination.lane_of(sample) == got.lane)
        return {sample: source.samples.tokens_of(sample) for sample in common}

    def check(self, bridge: str) -> None:
        """Wait for what the others told, and compare.

        Raises:
            BridgeError: another side sends something else, or has gone.
        """
        if self._is_checked:
            return
        for talk, theirs in self._conversation.listen(bridge):
            if not _is_same(theirs, self._mine):
                mine, there = _in_words(self._mine), _in_words(theirs)
                counts = "" if theirs[1] == self._mine[1] else f" in a batch of {theirs[1]}, not of {self._mine[1]}"
                there = there.removeprefix(f"{mine.split(' of ')[0]} of ")
                raise BridgeError(f"rank {self._rank} expects {mine} over {bridge}, but rank {talk.peer} sends {there}{counts}")
            if theirs[_HEADER] != self._mine[_HEADER]:
                raise BridgeError(
                    f"rank {self._rank} and rank {talk.peer} are not told the same over {bridge}: the token splits of its two "
                    "sides, source_lanes and destination_lanes are the same on all ranks"
                )
            tokens = self._tokens(talk.peer, self._rank)
            if theirs[_HEADER + 1] != _checksum(tokens.values()):
                counts = ", ".join(f"{count} in sample {sample}" for sample, count in list(tokens.items())[:8])
                raise BridgeError(
                    f"rank {self._rank} and rank {talk.peer} have unlike token counts over {bridge}: the first has {counts}"
                    f"{', ...' if len(tokens) > 8 else ''}"
                )
        self._is_checked = True


def exchange(
    source: Side,
    destination: Side,
    rank: int,
    device: torch.device,
    spec: ActivationSpec | None,
    number: int,
    batch: int,
    way: dist.ProcessGroup | None,
    bridge: str,
) -> ActivationSpec:
    """Tell destination ranks what their samples are, in one message from each source lane.

    Raises:
        BridgeError: the source did not answer within the timeout, or its lanes do not agree.
    """
    tells, hears = talks(rank, source, destination)
    told = []
    for talk in tells:
        assert spec is not None
        told.append((talk, _header(spec) + [spec.samples.tokens_of(sample) for sample in talk.samples]))
    conversation = _Conversation(
        rank, device, (number, Purpose.EXCHANGE, batch), way, told, [(talk, _HEADER + len(talk.samples)) for talk in hears]
    )
    if spec is not None and not hears:
        conversation.end(bridge)
        return spec
    tokens, headers = [0] * destination.samples.count, []
    if spec is not None and (place := source.endpoint.place(rank)) is not None:
        for sample in source.of_lane(place.lane):
            tokens[sample] = spec.samples.tokens_of(sample)
    for talk, message in conversation.listen(bridge):
        headers.append((talk.peer, message[:_HEADER]))
        for sample, count in zip(talk.samples, message[_HEADER:], strict=True):
            tokens[sample] = count
    conversation.end(bridge)
    (first, header), *others = headers
    for peer, other in others:
        if not _is_same(other, header):
            raise BridgeError(
                f"over {bridge}, rank {first} sends {_in_words(header)}, but rank {peer} sends {_in_words(other)}"
            )
    return _spec_of(header, replace(destination.samples, tokens=tuple(tokens)))


class _Conversation:
    """One message to each that is told something, and one from each that is heard."""

    def __init__(
        self,
        rank: int,
        device: torch.device,
        tag: tuple[int, Purpose, int],
        way: dist.ProcessGroup | None,
        told: list[tuple[Talk, list[int]]],
        hears: list[tuple[Talk, int]],
    ) -> None:
        self._rank = rank
        to_itself = {talk.peer: numbers for talk, numbers in told if talk.peer == rank}
        sent = [(talk, torch.tensor(numbers, dtype=torch.int64, device=device)) for talk, numbers in told if talk.peer != rank]
        self._heard = [
            (talk, torch.tensor(to_itself.get(talk.peer, [0] * size), dtype=torch.int64, device=device)) for talk, size in hears
        ]
        awaited = [(talk, message) for talk, message in self._heard if talk.peer != rank]
        operations = [dist.P2POp(dist.isend, message, talk.peer, way, tag_of(*tag, message)) for talk, message in sent]
        operations += [dist.P2POp(dist.irecv, message, talk.peer, way, tag_of(*tag, message)) for talk, message in awaited]
        try:
            works = dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:
            peers = ", ".join(str(operation.peer) for operation in operations)
            raise BridgeError(f"rank {rank} cannot speak to ranks {peers} of what crosses; one has died: {error}") from error
        if len(works) != len(operations):  # NCCL makes one of a batch
            works = works * len(operations)
        self._sent = list(zip(works[: len(sent)], sent, strict=True))
        self._arriving = {talk.peer: work for work, (talk, _) in zip(works[len(sent) :], awaited, strict=True)}

    def listen(self, bridge: str) -> list[tuple[Talk, list[int]]]:
        """What was heard, from whom."""
        for peer, work in self._arriving.items():
            try:
                work.wait()
            except RuntimeError as error:
                raise BridgeError(
                    f"rank {self._rank} waited in vain for rank {peer} to say what it sends over {bridge}: {error}"
                ) from error
        self._arriving.clear()
        return [(talk, message.tolist()) for talk, message in self._heard]

    def end(self, bridge: str) -> None:
        """Wait until what was told has been heard."""
        for work, (talk, _) in self._sent:
            try:
                work.wait()
            except RuntimeError as error:
                raise BridgeError(f"rank {self._rank} told rank {talk.peer} in vain over {bridge}: {error}") from error
        self._sent.clear()


def _is_same(header: list[int], other: list[int]) -> bool:
    """Whether two descriptions mean the same; tokens may be given as one number or one by one."""

    def plain(numbers: list[int]) -> list[int]:
        form = _PACKED if numbers[2] == _SINGLE else numbers[2]
        return [*numbers[:2], form, *numbers[3:_HEADER]]

    return plain(header) == plain(other)


def _agreed(source: Endpoint, destination: Endpoint, spec: ActivationSpec) -> int:
    """A checksum of what both sides must be told alike."""
    lanes = spec.samples.source_lanes, spec.samples.destination_lanes
    return _checksum([source.split, destination.split, lanes])


def _checksum(values: Iterable[object]) -> int:
    return zlib.crc32(repr(list(values)).encode())


def _header(spec: ActivationSpec) -> list[int]:
    samples = spec.samples
    if spec.is_dense and isinstance(samples.tokens, int):
        form = [_DENSE, samples.tokens]
    else:
        form = [_SINGLE if samples.tokens == 1 else _PACKED]
    numbers = [_DTYPES.index(spec.dtype), samples.count, *form, *spec.token_shape, _END]
    return numbers + [0] * (_HEADER - len(numbers))


def _in_words(header: list[int]) -> str:
    dtype, _, form, *dimensions = header
    what = "tokens" if form == _PACKED else "samples"
    return f"{what} of {_DTYPES[dtype]} {dimensions[: dimensions.index(_END)]}"


def _spec_of(header: list[int], samples: Samples) -> ActivationSpec:
    dtype, _, form, *dimensions = header
    shape = tuple(dimensions[: dimensions.index(_END)])
    if form == _DENSE:
        samples = replace(samples, tokens=shape[0])
        return ActivationSpec(samples=samples, token_shape=shape[1:], dtype=_DTYPES[dtype], is_dense=True)
    return ActivationSpec(samples=samples, token_shape=shape, dtype=_DTYPES[dtype])
