"""The tensors that one stage hands over in a micro-batch: one, or several by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import torch

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.errors import ScheduleError

Tensors: TypeAlias = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
"""What a stage returns, and what it gets from another one: a tensor, a tuple or a mapping of tensors."""

Specs: TypeAlias = ActivationSpec | Sequence[ActivationSpec] | Mapping[str, ActivationSpec]
"""The specs of `Tensors`, in the same form."""

ONE = ""
"""The name of a single tensor."""

T = TypeVar("T")


@dataclass(frozen=True)
class Named(Generic[T]):
    """Values by name, and whether they were one value, a tuple, or a mapping. A mapping's are in the order of their names."""

    form: type[Any] | None
    """`None` for one value."""
    values: Mapping[str, T]

    @classmethod
    def of(cls, what: str, value: object, kind: type[T]) -> "Named[T]":
        """From what a script's function returns.

        Raises:
            ScheduleError: it is neither one value of the kind nor several.
        """
        if isinstance(value, kind):
            return cls(None, {ONE: value})
        if isinstance(value, Mapping):
            found: Named[Any] = cls(dict, {name: value[name] for name in sorted(value)})
        elif isinstance(value, tuple | list):
            found = cls(tuple, {str(number): item for number, item in enumerate(value)})
        else:
            raise ScheduleError(
                f"{what} returned {type(value).__name__}; it returns {kind.__name__}, a tuple or a mapping of them"
            )
        for name, item in found.values.items():
            if not isinstance(item, kind):
                raise ScheduleError(f"{what} returned {type(item).__name__} as {name!r}, where {kind.__name__} is needed")
        return found

    def check_like(self, specs: "Named[ActivationSpec]", what: str) -> None:
        """
        Raises:
            ScheduleError: the names or the form differ from those of the specs.
        """
        if self.form is not specs.form or self.values.keys() != specs.values.keys():
            raise ScheduleError(f"{what} returned {self._described()}; by spec_of() it returns {specs._described()}")

    def like(self, values: Mapping[str, Any]) -> Any:
        """Values of some of these names, in the form of these."""
        if self.form is None:
            return values.get(ONE)
        return tuple(values.values()) if self.form is tuple else dict(values)

    def _described(self) -> str:
        if self.form is None:
            return "one tensor"
        return f"a {'tuple' if self.form is tuple else 'mapping'} of {', '.join(self.values) or 'nothing'}"
