"""Tensors without memory and values, in a whole process."""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from mimo_role.bridge.buffer_pool import BufferPool
from mimo_role.errors import GradientError, MimoError
from mimo_role.rehearsal import fake_ddp
from mimo_role.rehearsal.fake_mode import QuickFakeMode
from mimo_role.rehearsal.fake_values import FakeValues
from mimo_role.training import gradient_norm


class FakeTensors:
    """torch's mode in which new tensors are fake, and the answers for their values."""

    def __init__(self) -> None:
        self.mode = QuickFakeMode()
        self._values = FakeValues(self.mode)

    @property
    def assumed(self) -> Counter[str]:
        """How many values were assumed, by operator."""
        return self._values.assumed

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The real tensor beside a fake one, if it is known."""
        return self._values.value(tensor)

    @contextmanager
    def values(self) -> Iterator[None]:
        """Answer for values within a block. Entered after all other modes, so that it is asked before them."""
        replaced = [
            (FakeTensor, "numpy", lambda tensor, **_: self._values.numpy(tensor)),
            (FakeTensor, "__array__", self._array),
            (FakeTensor, "__deepcopy__", _copied),
            (torch, "tensor", _of_numbers(torch.tensor)),
            (torch, "as_tensor", _of_numbers(torch.as_tensor)),
            (BufferPool, "take", lambda pool, shape, dtype: torch.empty(shape, dtype=dtype, device=pool._device)),
            (gradient_norm, "_over_the_world", _without_failed_peers(gradient_norm._over_the_world)),
            (torch.utils, "swap_tensors", _forgetting(self.mode, torch.utils.swap_tensors)),
            *fake_ddp.REPLACED,
        ]
        originals = [(place, name, getattr(place, name)) for place, name, _ in replaced]
        for place, name, function in replaced:
            setattr(place, name, function)
        try:
            with self._values:
                yield
        finally:
            for place, name, function in originals:
                setattr(place, name, function)

    @property
    def _array(self) -> Callable[..., Any]:
        def array(tensor: FakeTensor, dtype: Any = None, **_: Any) -> Any:
            found = self._values.numpy(tensor)
            return found if dtype is None else found.astype(dtype)

        return array


def _copied(tensor: Any, memo: dict[int, Any]) -> Any:
    """In place of `Tensor.__deepcopy__`, which would copy the mode of a fake tensor too."""
    if id(tensor) not in memo:
        with torch.no_grad():
            copied = tensor.detach().clone()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        copied = (
            torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied.requires_grad_(tensor.requires_grad)
        )
        memo[id(tensor)] = copied
        if tensor.grad is not None:
            copied.grad = _copied(tensor.grad, memo)
    return memo[id(tensor)]


def _forgetting(mode: FakeTensorMode, swap: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """In place of `torch.utils.swap_tensors`, by which modules are converted, and which refuses tensors with weak references:
    the mode remembers some by one."""

    def swap_forgotten(one: Any, other: Any) -> None:
        remembered = mode.fake_tensor_converter.tensor_memo
        if weakref.getweakrefs(one) or weakref.getweakrefs(other):
            for key, tensor in list(remembered.items()):
                if tensor is one or tensor is other:
                    del remembered[key]
            del tensor
        swap(one, other)

    return swap_forgotten


def _of_numbers(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A tensor from a list in which there may be fake ones, whose values compiled code would read."""

    def make_of_numbers(data: Any, *arguments: Any, **settings: Any) -> torch.Tensor:
        if isinstance(data, list | tuple):
            data = tree_map_only(FakeTensor, lambda each: each.tolist(), data)
        return make(data, *arguments, **settings)

    return make_of_numbers


def _without_failed_peers(norm_of: Callable[..., float]) -> Callable[..., float]:
    """The norm over the world also counts ranks that failed, in one tensor with the norm, of which no value is known."""

    def assumed_norm(counted: Any, all_finite: Any, norm_type: float, own_error: MimoError | None) -> float:
        with suppress(GradientError):
            norm_of(counted, all_finite, norm_type, None)
        if own_error is not None:
            raise own_error
        return 1.0

    return assumed_norm
