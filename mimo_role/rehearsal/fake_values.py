"""Values of fake tensors: the few that are known, and constants for all others."""
# mypy: disable-error-code="no-untyped-call"

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from mimo_role.errors import MimoError
from mimo_role.rehearsal.functional_collectives import count_functional
from mimo_role.rehearsal.tensor_leaves import tensors_in

aten = torch.ops.aten
prim = torch.ops.prim

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


real_tensors = no_dispatch
"""A block in which no mode sees the operators, of real tensors only."""


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
        if func is prim.device.default and isinstance(args[0], FakeTensor) and not args[0].fake_mode.in_kernel_invocation:
            return args[0].fake_device  # asked often: not worth the way through all modes
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled within modes, and torch's wrapper takes as long as an operator."""
        return False

    def numpy(self, tensor: torch.Tensor) -> Any:
        """The elements of a tensor as an array."""
        value = self.value(tensor)
        if value is None:
            self.assumed["numpy"] += 1
            with real_tensors():
                value = torch.full(tensor.shape, self._constant(tensor), dtype=tensor.dtype)
        with real_tensors():
            return value.numpy()

    def _scalar(self, tensor: torch.Tensor) -> Any:
        value = self.value(tensor)
        if value is not None:
            with real_tensors():
                return value.item()
        if isinstance(tensor, FakeTensor) or tensor.device.type == "meta":
            self.assumed["item"] += 1
            return self._constant(tensor)
        with real_tensors():
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
        name = _traits(func).name
        if name == "index":
            return aten.index.Tensor(args[0], list(self._without_masks(*args)))
        if name == "masked_select":
            return args[0].new_empty(self._selected(*args))
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

    def _selected(self, tensor: torch.Tensor, mask: torch.Tensor) -> int:
        """The number of elements that a mask selects; without values, all."""
        shape, known = torch.broadcast_shapes(tensor.shape, mask.shape), self.value(mask)
        if known is None:
            self.assumed["masked_select"] += 1
            return int(shape.numel())
        with real_tensors():
            return int(known.expand(shape).sum())

    def _without_masks(self, tensor: torch.Tensor, indices: Sequence[Any]) -> Iterator[Any]:
        """Indices in which the numbers of selected elements are in the place of masks; without values, of all elements."""
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                yield index
            elif (mask := self.value(index)) is not None:
                with real_tensors():
                    numbers = mask.nonzero(as_tuple=True)
                yield from map(self._faked, numbers)
            else:
                self.assumed["index"] += 1
                for _ in range(index.dim()):
                    yield tensor.new_empty(index.numel(), dtype=torch.int64)

    def _faked(self, value: torch.Tensor) -> torch.Tensor:
        with _disable_current_modes():
            found = self._fake_mode.from_tensor(value)
        self._remember(found, value)
        return found

    def _follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Compute small results for real, and forget what is overwritten by unknown values."""
        outputs = tensors_in(result)
        traits = _traits(func)
        for output in outputs:
            if output.dtype is torch.bool:
                self._operators[output.untyped_storage()] = traits.name
        computed = self._computed(func, args, kwargs) if all(map(_is_small, outputs)) else None
        if computed is not None:
            for output, value in zip(outputs, tensors_in(computed), strict=True):
                self._remember(output, value)
        elif traits.is_mutable:
            for tensor in _written(func, args, kwargs):
                self._values[tensor.untyped_storage()] = None

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The real result; `None` if something that it follows from is not known."""
        traits = _traits(func)
        is_drawn = traits.is_random and kwargs.get("generator") is None
        if is_drawn or not traits.is_computable or not all(map(self._is_known, tensors_in((args, kwargs)))):
            return None
        args, kwargs = tree_map_only(torch.Tensor, self.value, (args, kwargs))
        with real_tensors():
            return func(*args, **kwargs)

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The real tensor beside a fake one, with the same aliases; a real one that is small itself. `None`: not known."""
        if not self._is_known(tensor):
            return None
        if not isinstance(tensor, FakeTensor):
            return tensor
        known = self._values[tensor.untyped_storage()]
        with real_tensors():
            return torch.empty(0, dtype=tensor.dtype, device=known.device).set_(
                known, tensor.storage_offset(), tensor.shape, tensor.stride()
            )

    def _is_known(self, tensor: torch.Tensor) -> bool:
        known = self._values.get(tensor.untyped_storage(), _NONE)
        if isinstance(tensor, FakeTensor):
            return known is not None and known is not _NONE
        return known is _NONE and _is_small(tensor) and tensor.device.type != "meta"

    def _remember(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        if isinstance(tensor, FakeTensor):
            place = (value.storage_offset(), value.shape, value.stride(), value.dtype)
            same = place == (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
            is_known = same and value.device.type == "cpu"
            self._values[tensor.untyped_storage()] = value.untyped_storage() if is_known else None


def _assumed_result(name: str, args: Sequence[Any], kwargs: Any) -> Any:
    """No two elements are equal, and none is zero: the largest result. `None` for other operators."""
    if name not in _ASSUMED_RESULTS:
        return None
    return _ASSUMED_RESULTS[name](args[0], *args[1:], **kwargs)


def _all_different(tensor: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, ...]:
    count = tensor.numel()
    return tensor.new_empty(count), *(tensor.new_empty(count, dtype=torch.int64) for _ in range(2))


_ASSUMED_RESULTS: dict[str, Callable[..., Any]] = {
    "nonzero": lambda tensor: tensor.new_empty((tensor.numel(), tensor.dim()), dtype=torch.int64),
    "_unique2": _all_different,
    "unique_dim": _all_different,
    "unique_consecutive": _all_different,
    "bincount": lambda tensor, _weights=None, minlength=0: tensor.new_empty(max(minlength, 1), dtype=torch.int64),
}


def _is_small(tensor: torch.Tensor) -> bool:
    is_number = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return tensor.numel() <= (_KNOWN_ELEMENTS if is_number else _KNOWN_INTEGERS)


def _written(func: Any, args: Sequence[Any], kwargs: Any) -> Iterator[torch.Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(args[position] if position < len(args) else kwargs.get(argument.name))


@cache
def _traits(func: Any) -> "_Traits":
    return _Traits.of(func)


@dataclass(frozen=True, slots=True)
class _Traits:
    """What does not change between the calls of an operator."""

    name: str
    """Without `aten::` and the underscore of those that write."""
    is_mutable: bool
    is_computable: bool
    """Whether it leaves the storages of its arguments as they are."""
    is_random: bool
    """Whether its result is drawn from torch's generator, unless it is given one: those of a data set follow from seeds."""

    @classmethod
    def of(cls, func: Any) -> "_Traits":
        name = func._schema.name
        return cls(
            name=name.removeprefix("aten::").rstrip("_"),
            is_mutable=func._schema.is_mutable,
            is_computable=func.namespace == "aten" and name not in _OF_STORAGES,
            is_random=torch.Tag.nondeterministic_seeded in func.tags and func not in _ORDERS,
        )
