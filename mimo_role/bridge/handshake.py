"""What crosses a bridge, and how its two sides come to agree on it."""

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.errors import BridgeError
from mimo_role.resharding.samples import Endpoint, Place, Samples, Side
from mimo_role.resharding.transfer_plan import talks

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
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)

_HEADER = 16
"""Numbers that describe activations in a message: dtype, samples, form, shape, and an end mark."""

_PACKED_HEADER = struct.Struct(f"<{_HEADER + 2}q")
"""These, a checksum of splits and lanes, and one of token counts."""

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


class Description:
    """What the two sides of a bridge must agree on in one batch, as bytes that a header carries."""

    def __init__(self, source: Side, destination: Side, spec: ActivationSpec) -> None:
        """
        Args:
            source, destination: both ends with the batch's samples.
            spec: the batch's.
        """
        self._source = source
        self._destination = destination
        self._samples = spec.samples
        self._header = _header(spec)
        lanes = spec.samples.source_lanes, spec.samples.destination_lanes
        self._agreed = _checksum([source.endpoint.split, destination.endpoint.split, lanes])

    def between(self, source_rank: int, destination_rank: int) -> bytes:
        """For what goes from one rank to the other, or back."""
        tokens = self._tokens(source_rank, destination_rank)
        return _PACKED_HEADER.pack(*self._header, self._agreed, _checksum(tokens.values()))

    def difference(self, source_rank: int, destination_rank: int, theirs: bytes) -> tuple[str, str] | None:
        """What this rank expects and what the other one has, in words; `None` if their descriptions fit.

        Args:
            source_rank, destination_rank: the two ranks.
            theirs: the other's description.
        """
        *header, agreed, checksum = _PACKED_HEADER.unpack(theirs)
        mine = self._header
        if not _is_same(header, mine):
            counts = f" of a batch of {mine[1]}", f" of a batch of {header[1]}"
            expected, found = (
                _in_words(numbers) + (count if header[1] != mine[1] else "")
                for numbers, count in zip((mine, header), counts, strict=True)
            )
            return expected, found
        if agreed != self._agreed:
            return "token splits, source_lanes and destination_lanes that are the same on all ranks", "others"
        tokens = self._tokens(source_rank, destination_rank)
        if checksum != _checksum(tokens.values()):
            counted = ", ".join(f"{count} in sample {sample}" for sample, count in list(tokens.items())[:8])
            return f"token counts of {counted}{', ...' if len(tokens) > 8 else ''}", "others"
        return None

    def _tokens(self, source_rank: int, destination_rank: int) -> dict[int, int]:
        """By sample, the token counts of what crosses from one rank's lane to the other's."""
        given, got = self._source.endpoint.place(source_rank), self._destination.endpoint.place(destination_rank)
        if given is None or got is None:  # copies of one lane
            return {}
        common = (sample for sample in self._source.of_lane(given.lane) if self._destination.lane_of(sample) == got.lane)
        return {sample: self._samples.tokens_of(sample) for sample in common}


def handshake_peers(source: Endpoint, destination: Endpoint, rank: int) -> tuple[list[int], list[int]]:
    """To whom a rank sends the description of a bridge's first batch, and from whom it gets one, whatever they send else.

    Each destination rank gets one from every source lane with which it shares any batch of evenly split samples.
    """
    samples = Samples(math.lcm(source.lanes, destination.lanes))
    tells, hears = talks(rank, Side(source, samples, True), Side(destination, samples, False))
    return [talk.peer for talk in tells if talk.peer != rank], [talk.peer for talk in hears if talk.peer != rank]


def exchange(
    source: Side,
    destination: Side,
    rank: int,
    spec: ActivationSpec | None,
    bridge: int,
    number: int,
    ledger: BatchLedger,
    place: str,
) -> ActivationSpec:
    """Send destination ranks what their samples are, in one frame from each source lane.

    Args:
        source, destination: both ends with the samples as far as the rank knows them.
        rank: this process's.
        spec: what it sends, on a sender.
        bridge, number: of the bridge, and of this exchange over it.
        ledger: by which frames are sent and awaited.
        place: the bridge and this rank, for messages.

    Raises:
        BridgeError: the source did not answer within the timeout, or its lanes do not agree.
    """
    tells, hears = talks(rank, source, destination)
    heard: dict[int, list[int]] = {}
    for talk in tells:
        assert spec is not None
        values = _header(spec) + [spec.samples.tokens_of(sample) for sample in talk.samples]
        if talk.peer == rank:
            heard[rank] = values
        else:
            ledger.send_spec(talk.peer, bridge, number, values)
    if spec is not None and not hears:
        return spec
    tokens, headers = [0] * destination.samples.count, []
    if spec is not None and (given := source.endpoint.place(rank)) is not None:
        for sample in source.of_lane(given.lane):
            tokens[sample] = spec.samples.tokens_of(sample)
    others = [talk.peer for talk in hears if talk.peer != rank]
    heard |= zip(others, ledger.wait_for_specs(others, bridge, number, place), strict=True)
    for talk in hears:
        values = heard[talk.peer]
        if len(values) != _HEADER + len(talk.samples):
            raise ledger.fail(
                f"{place} expects {len(talk.samples)} samples from rank {talk.peer}, which describes {len(values) - _HEADER}; "
                "all ranks call exchange_spec() with the same number of samples and the same lanes"
            )
        headers.append((talk.peer, values[:_HEADER]))
        for sample, count in zip(talk.samples, values[_HEADER:], strict=True):
            tokens[sample] = count
    (first, header), *rest = headers
    for peer, other in rest:
        if not _is_same(other, header):
            raise ledger.fail(f"{place}: rank {first} sends {_in_words(header)}, but rank {peer} sends {_in_words(other)}")
    return _spec_of(header, replace(destination.samples, tokens=tuple(tokens)))


def _is_same(header: list[int], other: list[int]) -> bool:
    """Whether two descriptions mean the same; tokens may be given as one number or one by one."""

    def plain(numbers: list[int]) -> list[int]:
        form = _PACKED if numbers[2] == _SINGLE else numbers[2]
        return [*numbers[:2], form, *numbers[3:_HEADER]]

    return plain(header) == plain(other)


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
