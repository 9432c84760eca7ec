"""Pending collectives of this process, from torch's flight recorder.

There is a recorder for NCCL and one for the other backends; torch has no public way to read them in the process itself. What
is private is used in this file only; `tests/mimo_role/monitoring/test_diagnostics.py` fails when it changes.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mimo_role.monitoring import torch_groups


@dataclass(frozen=True, kw_only=True)
class GroupTrace:
    """Collectives of one process in one process group."""

    name: str
    """torch's name of the group, the same on all members."""
    description: str
    """`language.tp`; `default_pg` is the world."""
    ranks: tuple[int, ...] | None = None
    """Its members; `None` for the world, and for a group that was destroyed."""
    entered: int = 0
    """Number of collectives entered."""
    timeout_s: float = 0.0
    """The shortest timeout of the pending collectives; 0 if unknown."""
    waiting: Mapping[int, str] = field(default_factory=dict)
    """Pending collectives: their numbers, from 1, and names such as `all_reduce`."""

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
        )


def traces() -> list[GroupTrace]:
    """One for each group in which this process has entered a collective; none if it has not loaded torch."""
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
        if not entry["is_p2p"]:
            found.setdefault(entry["process_group"][0], []).append(entry)
    return [
        GroupTrace(
            name=name,
            description=entries[-1]["process_group"][1],
            ranks=members.get(name),
            entered=max(entry["collective_seq_id"] for entry in entries),
            timeout_s=min((entry.get("timeout_ms", 0) / 1000 for entry in entries if not entry["retired"]), default=0.0),
            waiting={
                entry["collective_seq_id"]: entry["profiling_name"].rpartition(":")[2]
                for entry in entries
                if not entry["retired"]
            },
        )
        for name, entries in found.items()
    ]
