"""Tensors without memory and values, in a whole process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from mimo_role.rehearsal.fake_values import FakeValues


class FakeTensors:
    """torch's mode in which new tensors are fake, and the answers for their values."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._values = FakeValues(self.mode)

    @property
    def assumed(self) -> Counter[str]:
        """How many values were assumed, by operator."""
        return self._values.assumed

    @contextmanager
    def values(self) -> Iterator[None]:
        """Answer for values within a block. Entered after all other modes, so that it is asked before them."""
        weak_references = torch.utils.weakref
        # torch refuses to convert modules whose parameters have weak references, as some in FakeTensorMode's caches have.
        torch.utils.weakref = SimpleNamespace(getweakrefs=lambda _: ())  # type: ignore[assignment]
        replaced = {name: getattr(FakeTensor, name) for name in ("numpy", "__array__")}
        FakeTensor.numpy = lambda tensor, **_: self._values.numpy(tensor)  # type: ignore[method-assign,assignment]
        FakeTensor.__array__ = lambda tensor, dtype=None: self._array(tensor, dtype)  # type: ignore[method-assign,assignment]
        try:
            with self._values:
                yield
        finally:
            torch.utils.weakref = weak_references
            for name, method in replaced.items():
                setattr(FakeTensor, name, method)

    def _array(self, tensor: FakeTensor, dtype: Any) -> Any:
        found = self._values.numpy(tensor)
        return found if dtype is None else found.astype(dtype)
