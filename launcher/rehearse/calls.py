"""The operations of a kind's rank over its groups, as its process has recorded them (`mimo_role/rehearsal/call_log.py`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any, NamedTuple

from launcher.rehearse.kinds import Kind


class Call(NamedTuple):
    """One operation."""

    text: str
    """Its name with what has to be the same on all members: `all_reduce(6 float32, sum)`."""
    place: str
    """The lines of the script, the innermost last; empty if there are none."""
    step: int
    """How many training steps had begun."""


@dataclass(frozen=True)
class Calls:
    """Operations in their order: those of a group, or the messages from one rank to another."""

    first: Sequence[Call]
    """Those that were kept."""
    count: int
    checksum: int

    @property
    def is_shortened(self) -> bool:
        """Whether there were more than those that were kept."""
        return len(self.first) < self.count

    @classmethod
    def of(cls, value: Mapping[str, Any], texts: Sequence[str]) -> "Calls":
        """From JSON."""
        first = [Call(texts[text], texts[place], step) for text, place, step in value["calls"]]
        return cls(first, value["count"], value["checksum"])


@dataclass(frozen=True)
class Group:
    """One group of a kind's rank."""

    description: str
    progressions: tuple[tuple[int, int, int], ...]
    """Its ranks in its order, each some `range(start, stop, step)`."""
    number: int
    """Among the groups of the same ranks."""
    calls: Calls
    messages: Mapping[tuple[int, int, int], Calls]
    """By sender and receiver, as ranks of the group, and tag."""
    receives_from_any: bool = False
    """Whether the rank has received without naming the sender."""

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Of the world, in the group's order."""
        return tuple(rank for progression in self.progressions for rank in range(*progression))

    @cached_property
    def members(self) -> frozenset[int]:
        """Its ranks."""
        return frozenset(self.ranks)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for one group of the real job on all its members."""
        return self.progressions, self.number

    @property
    def size(self) -> int:
        """The number of ranks."""
        return sum(len(range(*progression)) for progression in self.progressions)

    @property
    def name(self) -> str:
        """Its description, or its first ranks."""
        if self.description == "default_pg":
            return "world"
        if self.description == "undefined":
            shown = ", ".join(map(str, self.ranks[:3])) + (", ..." if self.size > 3 else "")
            return f"the group of ranks {shown}"
        return self.description

    @classmethod
    def of(cls, value: Mapping[str, Any], texts: Sequence[str]) -> "Group":
        """From JSON."""
        return cls(
            description=value["description"],
            progressions=tuple((start, stop, step) for start, stop, step in value["ranks"]),
            number=value["number"],
            calls=Calls.of(value["calls"], texts),
            messages={tuple(item["between"]): Calls.of(item, texts) for item in value["messages"]},
            receives_from_any=value["receives_from_any"],
        )


class Ended(Enum):
    """Why there are no more calls of a kind."""

    BY_ITSELF = auto()
    """The script has ended."""
    BY_STEPS = auto()
    """The script was ended after some training steps; it would have called more."""
    BY_A_FAILURE = auto()


@dataclass(frozen=True, kw_only=True)
class KindCalls:
    """All groups of one kind's rank."""

    kind: Kind
    groups: Sequence[Group]
    """In the order of their creation."""
    bridges: Mapping[str, Calls]
    """The batches of activations over each bridge, by its name."""
    ended: Ended

    @classmethod
    def of(cls, kind: Kind, value: Mapping[str, Any], ended: Ended) -> "KindCalls":
        """From JSON."""
        texts = value["texts"]
        groups = [Group.of(group, texts) for group in value["groups"]]
        bridges = {name: Calls.of(calls, texts) for name, calls in value["bridges"].items()}
        return cls(kind=kind, groups=groups, bridges=bridges, ended=ended)
