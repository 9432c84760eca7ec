"""What this rank would send: calls and bytes, by group and operation."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch


@dataclass(slots=True)
class _Count:
    calls: int = 0
    bytes: int = 0


@dataclass
class Traffic:
    """Counts of the whole process."""

    counts: dict[tuple[str, int, str], _Count] = field(default_factory=dict)
    """By the group's description, its size and the operation."""

    def add(self, group: str, size: int, operation: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count one call. Its bytes are those of the tensors that the caller passes in, before the operation."""
        count = self.counts.setdefault((group, size, operation), _Count())
        count.calls += 1
        count.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def as_list(self) -> list[dict[str, str | int]]:
        """The JSON form, the most bytes first."""
        found = sorted(self.counts.items(), key=lambda item: -item[1].bytes)
        return [
            {"group": group, "size": size, "operation": operation, "calls": count.calls, "bytes": count.bytes}
            for (group, size, operation), count in found
        ]
