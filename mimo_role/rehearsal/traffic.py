"""What this rank would send: calls and bytes, by group and operation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from mimo_role.bridge.message_tags import sender_of
from mimo_role.bridge.messages import Message

_NAMES = {"default_pg": "world", "undefined": "(no description)"}
"""torch's descriptions of groups."""


@dataclass(slots=True)
class _Count:
    calls: int = 0
    bytes: int = 0


@dataclass
class Traffic:
    """Counts of the whole process."""

    counts: dict[tuple[str, int, str], _Count] = field(default_factory=dict)
    """By the group's description, its size and the operation."""

    observe: Callable[[Iterable[torch.Tensor]], None] | None = None
    """Called with the tensors of each operation."""

    bridge: str | None = None
    """The bridge whose message is being sent, instead of a group."""

    def around(self, post: Callable[[Message], Any]) -> Callable[[Message], Any]:
        """What replaces the function that posts a message of a bridge: the message counts for the bridge."""

        def post_counted(message: Message) -> Any:
            number, purpose = sender_of(message.tag)
            self.bridge = f"bridge {number} {purpose.name.lower()}"
            try:
                return post(message)
            finally:
                self.bridge = None

        return post_counted

    def add(self, group: str, size: int, operation: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count one call. Its bytes are those of the tensors that the caller passes in, before the operation."""
        count = self.counts.setdefault((self.bridge or _NAMES.get(group, group), size, operation), _Count())
        tensors = list(tensors)
        if self.observe is not None:
            self.observe(tensors)
        count.calls += 1
        count.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def calls_of_all(self, world_size: int) -> int:
        """Collectives so far in which all ranks of the world take part."""
        return sum(
            count.calls
            for (group, size, _), count in self.counts.items()
            if size == world_size and not group.startswith("bridge ")
        )

    def as_list(self) -> list[dict[str, str | int]]:
        """The JSON form, the most bytes first."""
        found = sorted(self.counts.items(), key=lambda item: -item[1].bytes)
        return [
            {"group": group, "size": size, "operation": operation, "calls": count.calls, "bytes": count.bytes}
            for (group, size, operation), count in found
        ]
