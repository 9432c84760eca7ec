"""Tensors without memory and values, in a whole process."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

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
        replaced = {name: getattr(FakeTensor, name) for name in ("numpy", "__array__")}
        FakeTensor.numpy = lambda tensor, **_: self._values.numpy(tensor)  # type: ignore[method-assign,assignment]
        FakeTensor.__array__ = lambda tensor, dtype=None: self._values.numpy(tensor).astype(dtype, copy=False)  # type: ignore
        try:
            with self._values:
                yield
        finally:
            for name, method in replaced.items():
                setattr(FakeTensor, name, method)
