"""The operations of this rank over each of its groups, in their order: all members of a group have to have the same.

Only what the script causes is recorded, from its first line until its threads have ended. Of each group the first operations
are kept, each with the line of the script that it comes from; of all of them the number, and a checksum.
"""

import atexit
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from inspect import currentframe
from pathlib import Path
from typing import Any

import torch.distributed as dist

import mimo_role

KEPT_OF_A_GROUP = 4_000
KEPT_OF_ALL = 40_000
_LINES = 2

_OURS = Path(mimo_role.__path__[0])
_NOT_THE_SCRIPTS = (
    *(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "purelib", "platlib")),
    *(f"{folder}/" for folder in (_OURS, _OURS.with_name("launcher"))),
    "<frozen ",
)

Progressions = tuple[tuple[int, int, int], ...]
"""The ranks of several `range(start, stop, step)`."""


@dataclass
class Sequence:
    """The operations over one group, or the messages between two of its ranks in one direction."""

    calls: list[tuple[int, int, int]] = field(default_factory=list)
    """The first ones: operation and place, by their numbers in the log's texts, and the training step."""
    count: int = 0
    checksum: int = 0
    """CRC-32 of the texts of all of them."""


@dataclass
class _Group:
    description: str
    ranks: Progressions
    number: int
    """Among the groups of these ranks."""
    calls: Sequence = field(default_factory=Sequence)
    messages: dict[tuple[int, int, int], Sequence] = field(default_factory=dict)
    """By sender and receiver, as ranks of the group, and tag."""
    receives_from_any: bool = False

    def as_dict(self) -> dict[str, Any]:
        messages = [{"between": key, **vars(sequence)} for key, sequence in self.messages.items()]
        return {**vars(self), "calls": dict(vars(self.calls)), "messages": messages}


class CallLog:
    """What this rank has called, by group."""

    def __init__(self) -> None:
        self.step = 0
        """The number of training steps that have begun."""
        self.is_open = False
        """Whether operations are recorded."""
        self._texts: dict[str, int] = {}
        self._groups: dict[dist.ProcessGroup, _Group] = {}
        """In the order of their creation."""
        self._bridges: dict[str, Sequence] = {}
        self._numbers: Counter[Progressions] = Counter()
        self._kept = 0

    def around(self, run_as_main: Callable[..., None]) -> Callable[..., None]:
        """What replaces the function that runs the script: its operations are recorded, and those of its threads."""

        @wraps(run_as_main)
        def recorded(*arguments: Any, **settings: Any) -> None:
            self.is_open = True
            try:
                run_as_main(*arguments, **settings)
            finally:
                # The interpreter joins threads first, and then calls this before the script's exit functions.
                atexit.register(self._close)

        return recorded

    def created(self, group: dist.ProcessGroup, ranks: Iterable[int]) -> None:
        """A group has been created, of which this rank is a member.

        Args:
            group: the group.
            ranks: its ranks of the world, in its order.
        """
        if group in self._groups:
            return
        found = progressions(ranks)
        self._groups[group] = _Group(group.group_desc, found, self._numbers[found])
        self._numbers[found] += 1

    def add(self, group: dist.ProcessGroup, operation: str) -> None:
        """Record an operation in which all members of a group take part.

        Args:
            group: the group.
            operation: its name with what has to be the same on all members.
        """
        if self.is_open and group in self._groups:
            self._add(self._groups[group].calls, operation)

    def add_message(self, group: dist.ProcessGroup, source: int, destination: int, tag: int, content: str) -> None:
        """Record a message, on the rank that sends it or on the one that receives it.

        Args:
            group: over which it is sent.
            source, destination: ranks of the group, one of them this one.
            tag: the tag.
            content: what has to be the same on both sides.
        """
        if self.is_open and group in self._groups:
            messages = self._groups[group].messages
            self._add(messages.setdefault((source, destination, tag), Sequence()), content)

    def add_receive_from_any(self, group: dist.ProcessGroup) -> None:
        """Record that this rank receives over a group without naming the sender: its messages cannot be compared."""
        if self.is_open and group in self._groups:
            self._groups[group].receives_from_any = True

    def add_batch(self, bridge: str) -> None:
        """Record a batch of activations that this rank sends or receives.

        Args:
            bridge: its name, the same on both sides.
        """
        if self.is_open:
            self._add(self._bridges.setdefault(bridge, Sequence()), "a batch of activations")

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        groups = [group.as_dict() for group in self._groups.values()]
        bridges = {name: dict(vars(sequence)) for name, sequence in self._bridges.items()}
        return {"texts": list(self._texts), "groups": groups, "bridges": bridges}

    def _close(self) -> None:
        self.is_open = False

    def _add(self, sequence: Sequence, operation: str) -> None:
        sequence.count += 1
        sequence.checksum = zlib.crc32(operation.encode(), sequence.checksum)
        if len(sequence.calls) < KEPT_OF_A_GROUP and self._kept < KEPT_OF_ALL:
            self._kept += 1
            sequence.calls.append((self._number(operation), self._number(script_lines()), self.step))

    def _number(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def script_lines() -> str:
    """The two innermost lines of the script, or of modules that are not installed, on this thread's stack.

    Each is `train.py:21 in main`; the innermost one is the last.
    """
    found: list[str] = []
    frame = currentframe()
    while frame is not None and len(found) < _LINES:
        code = frame.f_code
        if not code.co_filename.startswith(_NOT_THE_SCRIPTS):
            found.insert(0, f"{code.co_filename}:{frame.f_lineno} in {code.co_name}")
        frame = frame.f_back
    return "\n".join(found)


def progressions(numbers: Iterable[int]) -> Progressions:
    """Numbers as few arithmetic progressions, in their order."""
    found: list[list[int]] = []
    """First, last and step of each; the step is 0 of a single number."""
    for number in numbers:
        if found and number > found[-1][1] and found[-1][2] in (0, number - found[-1][1]):
            found[-1][1:] = number, number - found[-1][1]
        else:
            found.append([number, number, 0])
    return tuple((first, last + 1, max(step, 1)) for first, last, step in found)
