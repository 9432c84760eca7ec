"""What this rank would send: calls and bytes, by group and operation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from mimo_role.bridge.message_tags import sender_of
from mimo_role.bridge.messages import Message

_NAMES = {"default_pg": "world", "undefined": "(no description)"}
"""torch's descriptions of groups."""

Runs = tuple[tuple[int, int, int], ...]
"""Ranks, ascending, as the arguments of as many `range`."""


class _Operation(NamedTuple):
    group: str
    """The group's description, or the bridge."""
    size: int
    """Of the group."""
    name: str
    ranks: Runs
    """The group's, or the rank that gets a message."""


@dataclass(slots=True)
class _Count:
    calls: int = 0
    bytes: int = 0

    def minus(self, other: "_Count") -> "_Count":
        return _Count(self.calls - other.calls, self.bytes - other.bytes)


@dataclass
class Traffic:
    """Counts of the whole process."""

    counts: dict[_Operation, _Count] = field(default_factory=dict)

    observe: Callable[[Iterable[torch.Tensor]], None] | None = None
    """Called with the tensors of each operation."""

    bridge: str | None = None
    """The bridge whose message is being sent, instead of a group."""

    _at_steps: list[dict[_Operation, _Count]] = field(default_factory=list)
    """The counts when each of the last two steps began."""

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

    def add(self, group: str, size: int, operation: str, tensors: Iterable[torch.Tensor], ranks: Runs) -> None:
        """Count one call. Its bytes are those of the tensors that the caller passes in, before the operation."""
        key = _Operation(self.bridge or _NAMES.get(group, group), size, operation, ranks)
        count = self.counts.setdefault(key, _Count())
        tensors = list(tensors)
        if self.observe is not None:
            self.observe(tensors)
        count.calls += 1
        count.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def calls_of_all(self, world_size: int) -> int:
        """Collectives so far in which all ranks of the world take part."""
        return sum(
            count.calls for key, count in self.counts.items() if key.size == world_size and not key.group.startswith("bridge ")
        )

    def begin_step(self) -> None:
        """A training step begins, and the one before ends."""
        now = {key: _Count(count.calls, count.bytes) for key, count in self.counts.items()}
        self._at_steps = [*self._at_steps[-1:], now]

    def as_list(self) -> list[dict[str, Any]]:
        """The JSON form, the most bytes first.

        `step_calls` and `step_bytes` are those of the last step that another one followed; of a single step, of all that came
        after its beginning; without steps, of everything.
        """
        found = sorted(self.counts.items(), key=lambda item: -item[1].bytes)
        return [self._entry(key, count) for key, count in found]

    def _entry(self, key: _Operation, count: _Count) -> dict[str, Any]:
        first = self._at_steps[0] if self._at_steps else {}
        last = self._at_steps[1] if len(self._at_steps) > 1 else self.counts
        step = last.get(key, _Count()).minus(first.get(key, _Count()))
        return {
            "group": key.group,
            "size": key.size,
            "operation": key.name,
            "calls": count.calls,
            "bytes": count.bytes,
            "step_calls": step.calls,
            "step_bytes": step.bytes,
            "ranks": key.ranks,
        }


def runs_of(ranks: Iterable[int]) -> Runs:
    """Ascending ranks as ranges of equal steps."""
    runs: list[list[int]] = []
    for rank in ranks:
        last = runs[-1] if runs else None
        if last is not None and (len(last) == 1 or rank - last[-1] == last[1] - last[0]):
            last.append(rank)
        else:
            runs.append([rank])
    return tuple((run[0], run[-1] + 1, run[1] - run[0] if len(run) > 1 else 1) for run in runs)
