"""The memory of one rank's tensors in a rehearsal."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import Any

import torch

from mimo_role.rehearsal.fake_tensors import FakeTensors
from mimo_role.rehearsal.memory_tracker import MemoryTracker
from mimo_role.rehearsal.real_meshes import real_meshes


class Memory:
    """Runs a script with tensors whose memory is counted."""

    def __init__(self, *, fake: bool) -> None:
        """`fake`: tensors have a shape but no memory and no values; otherwise they are real, to check an estimate."""
        self.tracker = MemoryTracker()
        self._fake = FakeTensors() if fake else None

    def around(self, run_as_main: Callable[..., None]) -> Callable[..., None]:
        """What replaces the function that runs the script."""

        @wraps(run_as_main)
        def counted(*arguments: Any, **settings: Any) -> None:
            with ExitStack() as stack:
                if self._fake is not None:
                    stack.enter_context(self._fake.mode)
                stack.enter_context(self.tracker)
                if self._fake is not None:
                    stack.enter_context(self._fake.values())
                stack.enter_context(real_meshes(self._value_of))
                run_as_main(*arguments, **settings)

        return counted

    def _value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        return None if self._fake is None else self._fake.value_of(tensor)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: bytes at the peak, by purpose and by module, and the values that were assumed, by operator."""
        assumed = {} if self._fake is None else dict(self._fake.assumed)
        return {**self.tracker.ledger.as_dict(), "values_assumed": assumed}
