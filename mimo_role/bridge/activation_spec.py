"""The activations of one batch, also as the numbers by which ranks describe them to each other."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mimo_role.errors import BridgeError
from mimo_role.resharding.endpoint import Place, Side
from mimo_role.resharding.samples import Samples

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

SPEC_NUMBERS = 16
"""Count of numbers that describe activations: dtype, samples, form, shape, and an end mark."""

_PACKED, _DENSE, _SINGLE, _END = 0, 1, 2, -1
"""Forms of activations: tokens one after another, samples of equal length, samples of one token; and the end mark."""


@dataclass(frozen=True, kw_only=True)
class ActivationSpec:
    """The activations of one batch: what both sides of a bridge must know before the transfer.

    Packed, a rank's tensor is `[tokens of its samples, *token_shape]`, sample after sample; dense, which needs equally many
    tokens in each sample, `[samples, tokens, *token_shape]`. cp ranks and sequence-parallel ranks only have their own tokens.
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
        if len(self.token_shape) > SPEC_NUMBERS - 5 or self.dtype not in _DTYPES:
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


def takes_gradients(dtype: torch.dtype) -> bool:
    """Whether autograd adds gradients of a dtype; it cannot for floats of one byte."""
    return dtype.is_floating_point and dtype.itemsize > 1


def _shape(name: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, int):
        raise BridgeError(f"{name}={value} is one number; give all sizes, such as ({value},)")
    return tuple(value)


def have_equal_form(header: list[int], other: list[int]) -> bool:
    """Whether two descriptions mean the same; tokens may be given as one number or one by one."""

    def plain(numbers: list[int]) -> list[int]:
        form = _PACKED if numbers[2] == _SINGLE else numbers[2]
        return [*numbers[:2], form, *numbers[3:SPEC_NUMBERS]]

    return plain(header) == plain(other)


def pack_spec(spec: ActivationSpec) -> list[int]:
    samples = spec.samples
    if spec.is_dense and isinstance(samples.tokens, int):
        form = [_DENSE, samples.tokens]
    else:
        form = [_SINGLE if samples.tokens == 1 else _PACKED]
    numbers = [_DTYPES.index(spec.dtype), samples.count, *form, *spec.token_shape, _END]
    return numbers + [0] * (SPEC_NUMBERS - len(numbers))


def describe_form(header: list[int]) -> str:
    dtype, _, form, *dimensions = header
    what = "tokens" if form == _PACKED else "samples"
    return f"{what} of {_DTYPES[dtype]} {dimensions[: dimensions.index(_END)]}"


def unpack_spec(header: list[int], samples: Samples) -> ActivationSpec:
    dtype, _, form, *dimensions = header
    shape = tuple(dimensions[: dimensions.index(_END)])
    if form == _DENSE:
        samples = replace(samples, tokens=shape[0])
        return ActivationSpec(samples=samples, token_shape=shape[1:], dtype=_DTYPES[dtype], is_dense=True)
    return ActivationSpec(samples=samples, token_shape=shape, dtype=_DTYPES[dtype])
