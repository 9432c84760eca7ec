"""Which collectives this process has entered and not left, by torch's flight recorder.

The recorder runs with every backend, but torch has no public way to read it in the process itself. What is private stands in
this file alone; `tests/mimo_role/test_witness.py` fails when it changes.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class GroupTrace:
    """What one process has done in one process group."""

    name: str
    """torch's, on which all members agree."""
    description: str
    """What the group is for: `language.tp`; `default_pg` is the world."""
    ranks: tuple[int, ...] | None = None
    """Its members; `None` if this process does not know the group (any more)."""
    entered: int = 0
    """How many collectives it has entered."""
    waiting: Mapping[int, str] = field(default_factory=dict)
    """Those that it has not left: their numbers, from 1, and names such as `all_reduce`."""

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GroupTrace":
        """The inverse of `as_dict`, also after JSON has turned numbers into text."""
        ranks = value["ranks"]
        return cls(
            name=value["name"],
            description=value["description"],
            ranks=None if ranks is None else tuple(ranks),
            entered=value["entered"],
            waiting={int(number): name for number, name in value["waiting"].items()},
        )


def traces() -> list[GroupTrace]:
    """This process's, one per group in which it has entered a collective; none if it has not loaded torch."""
    if "torch.distributed" not in sys.modules:
        return []
    from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

    return from_dump(json.loads(_dump_fr_trace_json(True, False)), _members())


def from_dump(dump: Mapping[str, Any], members: Mapping[str, tuple[int, ...]]) -> list[GroupTrace]:
    """The same from the recorder's dump and the members of each group by its name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in dump.get("entries", ()):
        if not entry["is_p2p"]:
            found.setdefault(entry["process_group"][0], []).append(entry)
    return [
        GroupTrace(
            name=name,
            description=entries[-1]["process_group"][1],
            ranks=members.get(name),
            entered=max(entry["collective_seq_id"] for entry in entries),
            waiting={
                entry["collective_seq_id"]: entry["profiling_name"].rpartition(":")[2]
                for entry in entries
                if not entry["retired"]
            },
        )
        for name, entries in found.items()
    ]


def _members() -> dict[str, tuple[int, ...]]:
    from torch.distributed.distributed_c10d import _world

    return {group.group_name: tuple(ranks) for group, ranks in _world.pg_group_ranks.items()}
