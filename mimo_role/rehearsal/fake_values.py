"""Values of fake tensors: the few that are known, and constants for all others."""
# mypy: disable-error-code="no-untyped-call"

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from mimo_role.errors import MimoError
from mimo_role.rehearsal.functional_collectives import count_functional

aten = torch.ops.aten

_KNOWN_ELEMENTS = 1024
"""Tensors of at most as many are computed as well, if all that they follow from is known: counts, flags, steps."""

_KNOWN_INTEGERS = 65_536
"""The same for integers and flags: the order of samples, tokens of a batch."""

_TRUE_OF_ANY = ("any", "ne", "isinf", "isnan", "logical_not", "is_any_true")
"""Operators whose flags are assumed to be false: `isnan(loss).any()`. All others, such as `all` and `eq`, are true."""


_NONE = object()


_OF_STORAGES = ("aten::set_", "aten::resize_")
"""Operators that change which memory a tensor has."""

_ORDERS = tuple(getattr(aten.randperm, name) for name in aten.randperm.overloads())
"""Random operators that are computed as well."""


class FakeTensorError(MimoError):
    """A script needs what a fake tensor does not have."""


class FakeValues(TorchDispatchMode):
    """Answers what a fake tensor cannot: above `FakeTensorMode` and the tracker of memory.

    Small tensors that follow from numbers of the script are computed beside their fake ones, so that counters, flags and sizes
    are right. All other values are assumed: see `_constant` and `_assumed_shape`. `assumed` counts them by operator.
    """

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()
        self.assumed: Counter[str] = Counter()
        self._fake_mode = fake_mode
        # By storages, not tensors: torch refuses to swap tensors to which there are weak references.
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """The real storage beside that of fake tensors; `None` where something unknown has been written."""
        self._operators: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """The operator by which the storage of flags has been made."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if any(issubclass(each, DTensor) for each in types):
            return NotImplemented
        if func is aten._local_scalar_dense.default:
            return self._scalar(args[0])
        if func.namespace.startswith("_c10d_functional"):
            count_functional(func, args)
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            return self._answer(func, args, kwargs, error)
        except UnsupportedOperatorException as error:
            raise FakeTensorError(f"{func} cannot run without values: it has no rule for the shape of its result") from error
        self._follow(func, args, kwargs, result)
        return result

    def numpy(self, tensor: torch.Tensor) -> Any:
        """The elements of a tensor as an array."""
        value = self._value(tensor)
        if value is None:
            self.assumed["numpy"] += 1
            with _disable_current_modes():
                value = torch.full(tensor.shape, self._constant(tensor), dtype=tensor.dtype)
        with _disable_current_modes():
            return value.numpy()

    def _scalar(self, tensor: torch.Tensor) -> Any:
        value = self._value(tensor)
        if value is not None:
            with _disable_current_modes():
                return value.item()
        if isinstance(tensor, FakeTensor) or tensor.device.type == "meta":
            self.assumed["item"] += 1
            return self._constant(tensor)
        with _disable_current_modes():
            return tensor.item()

    def _constant(self, tensor: torch.Tensor) -> Any:
        """1, in the tensor's type; false for flags of what should not be, true for others."""
        if tensor.dtype is torch.bool:
            return self._operators.get(tensor.untyped_storage(), "") not in _TRUE_OF_ANY
        return 1 if not tensor.dtype.is_floating_point else 1.0

    def _answer(self, func: Any, args: Any, kwargs: Any, error: Exception) -> Any:
        """The result of an operator whose shape or value depends on values."""
        known = self._computed(func, args, kwargs)
        if known is not None:
            return tree_map_only(torch.Tensor, self._faked, known)
        name = func._schema.name.removeprefix("aten::")
        self.assumed[name] += 1
        if name in ("equal", "allclose"):
            return True
        shape = _assumed_result(name, args, kwargs)
        if shape is None:
            raise FakeTensorError(
                f"{func} has a result whose shape depends on values, which tensors do not have under --memory; "
                "guard it by a flag of the script's, or rehearse without --memory"
            ) from error
        return shape

    def _faked(self, value: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            found = self._fake_mode.from_tensor(value)
        self._remember(found, value)
        return found

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Compute small results for real, and forget what is overwritten by unknown values."""
        outputs = _tensors(result)
        for output in outputs:
            if output.dtype is torch.bool:
                self._operators[output.untyped_storage()] = func._schema.name.removeprefix("aten::").rstrip("_")
        computed = self._computed(func, args, kwargs) if all(map(_is_small, outputs)) else None
        if computed is not None:
            for output, value in zip(outputs, _tensors(computed), strict=True):
                self._remember(output, value)
        elif func._schema.is_mutable:
            for tensor in _written(func, args, kwargs):
                self._values[tensor.untyped_storage()] = None

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The real result; `None` if something that it follows from is not known."""
        given = _tensors((args, kwargs))
        if func._schema.name in _OF_STORAGES:
            return None
        if func.namespace != "aten" or (torch.Tag.nondeterministic_seeded in func.tags and func not in _ORDERS):
            return None
        if any(self._value(tensor) is None for tensor in given):
            return None
        args, kwargs = tree_map_only(torch.Tensor, self._value, (args, kwargs))
        with _disable_current_modes():
            return func(*args, **kwargs)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The real tensor beside a fake one, with the same aliases; a real one that is small itself. `None`: not known."""
        known = self._values.get(tensor.untyped_storage(), _NONE)
        if not isinstance(tensor, FakeTensor):
            return tensor if known is _NONE and _is_small(tensor) and tensor.device.type != "meta" else None
        if known is None or known is _NONE:
            return None
        with _disable_current_modes():
            return torch.empty(0, dtype=tensor.dtype, device=known.device).set_(
                known, tensor.storage_offset(), tensor.shape, tensor.stride()
            )

    def _remember(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        if isinstance(tensor, FakeTensor):
            place = (value.storage_offset(), value.shape, value.stride(), value.dtype)
            same = place == (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
            is_known = same and value.device.type == "cpu"
            self._values[tensor.untyped_storage()] = value.untyped_storage() if is_known else None


def _assumed_result(name: str, args: Sequence[Any], kwargs: Any) -> Any:
    """Every element is selected, and no two are equal: the largest result. `None` for other operators."""
    if name not in _ASSUMED_RESULTS:
        return None
    return _ASSUMED_RESULTS[name](args[0], *args[1:], **kwargs)


def _all_different(tensor: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    count = tensor.numel()
    return tensor.new_empty(count), *(tensor.new_empty(count, dtype=torch.int64) for _ in range(2))


_ASSUMED_RESULTS: dict[str, Callable[..., Any]] = {
    "nonzero": lambda tensor: tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64),
    "masked_select": lambda tensor, mask: tensor.new_empty(torch.broadcast_shapes(tensor.shape, mask.shape).numel()),
    "index": lambda tensor, indices: aten.index.Tensor(tensor, list(_numbers(tensor, indices))),
    "_unique2": _all_different,
    "unique_dim": _all_different,
    "unique_consecutive": _all_different,
    "bincount": lambda tensor, _weights=None, minlength=0: tensor.new_empty(max(minlength, 1), dtype=torch.int64),
}


def _numbers(tensor: torch.Tensor, indices: Sequence[Any]) -> Iterator[Any]:
    """Indices without masks: in the place of each, the numbers of all elements."""
    for index in indices:
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            yield index
        else:
            for _ in range(index.dim()):
                yield tensor.new_empty(index.numel(), dtype=torch.int64)


def _is_small(tensor: torch.Tensor) -> bool:
    is_number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return tensor.numel() <= (_KNOWN_ELEMENTS if is_number else _KNOWN_INTEGERS)


def _written(func: Any, args: Sequence[Any], kwargs: Any) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[position] if position < len(args) else kwargs.get(argument.name))


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
