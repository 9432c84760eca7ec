"""Pending collectives and messages of this process, from torch's flight recorder.

There is a recorder for NCCL and one for the other backends; torch has no public way to read them in the process itself. What
is private is used in this file only; `tests/mimo_role/monitoring/test_diagnostics.py` fails when it changes.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import takewhile
from typing import Any

from mimo_role.monitoring import torch_groups

_MESSAGE = re.compile(r"(send|recv) (\d+)(?:->|<-)(\d+)")
"""An operation between two ranks of a group: `send 0->2`, `recv 2<-0`. The first rank is the process's own."""


@dataclass(frozen=True, kw_only=True)
class MessageTrace:
    """Messages of one process to another, or from another, in one process group. gloo's recorder has none."""

    own: int
    """This process's rank in the group."""
    peer: int
    """The other's rank in the group."""
    is_send: bool
    posted: int
    """Number of sends or receives in the recorder, pending ones included."""
    pending: int
    """Number of those that are not complete. A message of a batch is pending as long as any other of the batch."""
    has_all: bool
    """Whether the recorder, whose length is limited, still has all operations of the process."""


@dataclass(frozen=True, kw_only=True)
class GroupTrace:
    """Collectives and messages of one process in one process group."""

    name: str
    """torch's name of the group, the same on all members."""
    description: str
    """`language.tp`; `default_pg` is the world."""
    ranks: tuple[int, ...] | None = None
    """Its members; `None` for the world, and for a group that was destroyed."""
    entered: int = 0
    """Number of collectives entered."""
    timeout_s: float = 0.0
    """The shortest timeout of what is pending; 0 if unknown."""
    waiting: Mapping[int, str] = field(default_factory=dict)
    """Pending collectives: their numbers, from 1, and names such as `all_reduce`."""
    messages: tuple[MessageTrace, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GroupTrace":
        """The inverse of `as_dict`, also after JSON has turned keys into strings."""
        ranks = value["ranks"]
        return cls(
            name=value["name"],
            description=value["description"],
            ranks=None if ranks is None else tuple(ranks),
            entered=value["entered"],
            timeout_s=value["timeout_s"],
            waiting={int(number): name for number, name in value["waiting"].items()},
            messages=tuple(MessageTrace(**message) for message in value["messages"]),
        )


def traces() -> list[GroupTrace]:
    """One for each group that this process has used; none if it has not loaded torch."""
    if "torch.distributed" not in sys.modules:
        return []
    from torch._C import _distributed_c10d as c10d

    # NCCL has a recorder of its own, which builds of torch without CUDA lack.
    readers = [getattr(c10d, "_dump_nccl_trace_json", None), getattr(c10d, "_dump_fr_trace_json", None)]
    dumps = [json.loads(read(True, False)) for read in readers if read is not None]
    return from_dump({"entries": [entry for dump in dumps for entry in dump.get("entries", ())]}, torch_groups.members())


def from_dump(dump: Mapping[str, Any], members: Mapping[str, tuple[int, ...]]) -> list[GroupTrace]:
    """The traces from a recorder's dump and the members of each group by its name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in dump.get("entries", ()):
        found.setdefault(entry["process_group"][0], []).append(entry)
    complete = {_backend_of(entry) for entry in dump.get("entries", ()) if entry.get("record_id") == 0}
    traces = [_trace_of(name, members.get(name), entries, complete) for name, entries in found.items()]
    return [trace for trace in traces if trace.entered or trace.messages]


@dataclass(frozen=True)
class _Operation:
    """A collective or a message."""

    entry: Mapping[str, Any]
    is_pending: bool

    @property
    def name(self) -> str:
        name: str = self.entry["profiling_name"].rpartition(":")[2]
        return name

    @property
    def numbers(self) -> tuple[int, int]:
        """How many collectives the process has entered in the group, and how many messages or batches of messages."""
        return self.entry["collective_seq_id"], self.entry.get("p2p_seq_id", 0)


def _trace_of(name: str, ranks: tuple[int, ...] | None, entries: Sequence[Mapping[str, Any]], complete: set[str]) -> GroupTrace:
    operations = _operations(entries)
    collectives = [each for each in operations if not each.entry["is_p2p"]]
    timeouts_s = [each.entry.get("timeout_ms", 0) / 1000 for each in operations if each.is_pending]
    return GroupTrace(
        name=name,
        description=entries[-1]["process_group"][1],
        ranks=ranks,
        entered=max((each.entry["collective_seq_id"] for each in collectives), default=0),
        timeout_s=min(timeouts_s, default=0.0),
        waiting={each.entry["collective_seq_id"]: each.name for each in collectives if each.is_pending},
        messages=_messages([each for each in operations if each.entry["is_p2p"]], complete),
    )


def _operations(entries: Sequence[Mapping[str, Any]]) -> list[_Operation]:
    """The operations of one group, in their order.

    ProcessGroupNCCL records those of a batch without events: they never become complete. An entry named `coalesced` follows
    them, and has the state of the batch. It has the number of the last collective even where the batch is one of messages.
    """
    found: list[_Operation] = []
    for entry in entries:
        operation = _Operation(entry, _is_pending(entry))
        if operation.name != "coalesced":
            found.append(operation)
            continue
        size = _size_of_batch(found, operation)
        found[len(found) - size :] = [replace(each, is_pending=operation.is_pending) for each in found[len(found) - size :]]
        messages_before = found[-1].numbers[1] if found else 0
        if not size and operation.numbers[1] == messages_before:
            # Releases of torch before 2.7 do not record the collectives of a batch.
            found.append(operation)
    return found


def _is_pending(entry: Mapping[str, Any]) -> bool:
    """Whether an operation is not complete.

    The state of an NCCL operation is read from its CUDA events, which count as complete until they are recorded. A rank that is
    blocked in the launch, as in the first operation of a communicator while a peer does not come, has not recorded them. So it
    is complete when NCCL's watchdog has seen it complete.
    """
    return not entry["retired"] and (_backend_of(entry) == "nccl" or entry.get("state") != "completed")


def _size_of_batch(operations: Sequence[_Operation], end: _Operation) -> int:
    """How many of the last operations have the numbers of the entry that ends a batch."""
    return sum(1 for _ in takewhile(lambda each: each.numbers == end.numbers, reversed(operations)))


def _messages(operations: Sequence[_Operation], complete: set[str]) -> tuple[MessageTrace, ...]:
    found: dict[tuple[str, ...], list[_Operation]] = {}
    for operation in operations:
        if (match := _MESSAGE.fullmatch(operation.name)) is not None:
            found.setdefault(match.groups(), []).append(operation)
    return tuple(
        MessageTrace(
            own=int(own),
            peer=int(peer),
            is_send=kind == "send",
            posted=len(each),
            pending=sum(operation.is_pending for operation in each),
            has_all=_backend_of(each[0].entry) in complete,
        )
        for (kind, own, peer), each in found.items()
    )


def _backend_of(entry: Mapping[str, Any]) -> str:
    backend: str = entry["profiling_name"].partition(":")[0]
    return backend
