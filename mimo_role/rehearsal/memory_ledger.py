"""Bytes of tensors by module and purpose, and what they were when there were most. Pure arithmetic."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Purpose(Enum):
    """What a tensor's memory is for. The values are the names in `rehearsal.json`."""

    PARAMETERS = "parameters"
    """In modules; with FSDP, both the shards and the parameters that are gathered from them."""
    BUFFERS = "buffers"
    """In modules."""
    GRADIENTS = "gradients"
    """Of parameters."""
    OPTIMIZER_STATE = "optimizer_state"
    ACTIVATIONS = "activations"
    """Made in a forward pass, or in one that is repeated in the backward pass."""
    COMMUNICATION = "communication"
    """Passed to collectives: buckets of gradients, shards that are gathered or reduced."""
    TEMPORARY = "temporary"
    """Made in a backward pass or in a step of an optimizer."""
    OTHER = "other"
    """Made elsewhere, such as a batch of samples."""


Place = tuple[str, Purpose]
"""The path of a module, and the purpose."""


@dataclass
class MemoryLedger:
    """Memory that is in use now, and its peak."""

    total: int = 0
    """Bytes in use."""
    peak: int = 0
    """The most bytes that were in use at a time, as of the last `settle`."""
    before_peak: Callable[[], None] = lambda: None
    """Called when there is a new peak, before its places are remembered: it may still call `move`."""
    _by_place: Counter[Place] = field(default_factory=Counter)
    _at_peak: dict[Place, int] = field(default_factory=dict)

    def add(self, place: Place, size: int) -> None:
        """Memory of `size` bytes is in use, or given back where it is negative."""
        if size < 0:
            self.settle()
        self.total += size
        self._by_place[place] += size
        if not self._by_place[place]:
            del self._by_place[place]

    def move(self, old: Place, new: Place, size: int) -> None:
        """What has been added for one place is for another."""
        for place, change in ((old, -size), (new, size)):
            self._by_place[place] += change
            if not self._by_place[place]:
                del self._by_place[place]

    def settle(self) -> None:
        """Remember what is in use, if that is more than before."""
        if self.total > self.peak:
            self.peak = self.total
            self.before_peak()
            self._at_peak = dict(self._by_place)

    def as_dict(self) -> dict[str, Any]:
        """The peak in bytes, by purpose and by module; modules in the order of their bytes."""
        self.settle()
        modules: dict[str, dict[str, int]] = {}
        purposes = dict.fromkeys((purpose.value for purpose in Purpose), 0)
        for (path, purpose), size in self._at_peak.items():
            purposes[purpose.value] += size
            of_module = modules.setdefault(path, {})
            of_module[purpose.value] = of_module.get(purpose.value, 0) + size
        ordered = sorted(modules.items(), key=lambda item: (-sum(item[1].values()), item[0]))
        return {"peak_bytes": self.peak, **purposes, "modules": dict(ordered)}
