"""torch's mode for fake tensors, with a shorter way to what it has computed before."""
# mypy: disable-error-code="override,no-untyped-call,attr-defined"

import inspect
from collections.abc import Hashable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

aten = torch.ops.aten

_LOSSES = (
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.soft_margin_loss.default,
    aten.binary_cross_entropy.default,
)
"""Kernels that compute the loss of each element in the memory of their result, and leave the mean or sum there."""

_DEVICE = "_fake_device" if "_fake_device" in FakeTensor.__annotations__ else "fake_device"
"""The attribute of fake tensors that has their device: its name depends on the release of torch."""

_ATOMS = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})


class QuickFakeMode(FakeTensorMode):
    """A training step repeats its operators with tensors of the same sizes. torch remembers the results by a key that takes
    longer to make than the result. Here the key is remembered too, by the properties of tensors from which torch makes it.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._keys: dict[tuple[Hashable, ...], Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled within modes such as `FakeValues`, and the wrapper takes long."""
        return False

    __torch_dispatch__ = inspect.unwrap(FakeTensorMode.__torch_dispatch__)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch's, with the memory that results have."""
        result = super().dispatch(func, types, args, kwargs or {})
        if func in _LOSSES and not result.dim():
            elements = torch.broadcast_shapes(args[0].shape, args[1].shape).numel()
            result.untyped_storage().resize_(elements * result.element_size())
        return result

    def _cache_key(self, state: Any, func: Any, args: Any, kwargs: Any) -> Any:
        parts: list[Any] = [
            func,
            torch.get_default_dtype(),
            torch._C._get_default_device(),
            torch.is_inference_mode_enabled(),
        ]
        if self.shape_env is not None or not (self._append(parts, args) and self._append(parts, kwargs)):
            return super()._cache_key(state, func, args, kwargs)
        parts_of_key = tuple(parts)
        key = self._keys.get(parts_of_key)
        if key is None:
            key = self._keys[parts_of_key] = super()._cache_key(state, func, args, kwargs)
        return key

    def _get_output_tensor_from_cache_entry(self, state: Any, entry: Any, key: Any, *rest: Any) -> Any:
        """As torch's, whose last argument has the operator's; up to torch 2.14 the operator comes before it."""
        made = entry.metadata
        if entry.inplace_idx is not None or made is None or not _is_plain(made):
            return super()._get_output_tensor_from_cache_entry(state, entry, key, *rest)
        with no_dispatch():
            if entry.view_idx is not None:
                storage = rest[-1][entry.view_idx].untyped_storage()
                meta = torch.empty(0, dtype=made.dtype, device="meta")
                meta.set_(storage, made.storage_offset, made.shape, made.stride)
            else:
                meta = torch.empty_strided(made.shape, made.stride, dtype=made.dtype, device="meta")
        return FakeTensor(self, meta, made.device)

    def _append(self, parts: list[Any], value: Any) -> bool:
        """Add what a result can depend on; false for values that torch has to look at."""
        kind = type(value)
        if kind is FakeTensor:
            return self._append_tensor(parts, value)
        if kind in _ATOMS:
            parts.append(kind)  # 1 and 1.0 are equal
            parts.append(value)
            return True
        if kind is tuple or kind is list:
            parts += (kind, len(value))
            return all(self._append(parts, each) for each in value)
        if kind is dict:
            parts.append(tuple(value))
            return all(self._append(parts, each) for each in value.values())
        return False

    def _append_tensor(self, parts: list[Any], tensor: FakeTensor) -> bool:
        if tensor.fake_mode is not self or tensor.constant is not None or tensor.layout is not torch.strided:
            return False
        parts += (
            tensor.dtype,
            tensor.shape,
            tensor.stride(),
            tensor.storage_offset(),
            tensor.untyped_storage().nbytes(),
            getattr(tensor, _DEVICE),
            tensor.requires_grad,
            tensor.is_inference(),
            tensor.is_conj(),
            tensor.is_neg(),
        )
        return not tensor.is_quantized


def _is_plain(metadata: Any) -> bool:
    return metadata.layout is torch.strided and not (metadata.is_conj or metadata.is_neg or metadata.requires_grad)
