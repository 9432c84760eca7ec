"""The traffic of a rehearsed job: by kind, and of all ranks by group."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.bridge_peers import BridgePeers
from launcher.rehearse.kind_result import KindResult
from launcher.rehearse.placed_traffic import PlacedTraffic, Sent

_MIB = 1 << 20
_SUMMED = ("calls", "bytes", "step_calls", "step_bytes")


class TrafficResult:
    """What the ranks of all kinds pass to operations and send."""

    def __init__(self, plan: LaunchPlan, results: Sequence[KindResult]) -> None:
        self._results = results
        self._bridges = BridgePeers(plan.topology)
        self._placed = PlacedTraffic(plan, self._bridges)
        self._of_kinds = {result.kind.representative: self._entries(result) for result in results}

    def of(self, result: KindResult) -> list[dict[str, Any]]:
        """By group and operation, calls and bytes of the rehearsed rank; by step, and with what ranks of the kind send."""
        return [{**entry, **sent.as_dict()} for entry, sent in self._of_kinds[result.kind.representative]]

    def of_groups(self) -> dict[str, dict[str, int]]:
        """By group or bridge, what all ranks of the job send in a step."""
        totals: dict[str, Sent] = {}
        for result in self._results:
            for entry, sent in self._of_kinds[result.kind.representative]:
                totals[entry["group"]] = totals.get(entry["group"], Sent()).plus(sent, times=len(result.kind.ranks))
        return {group: sent.as_dict() for group, sent in totals.items()}

    def table(self) -> str:
        """Calls and bytes in a step, of the first kind of each stage."""
        rows = []
        for stage in dict.fromkeys(result.kind.stage for result in self._results):
            first = next(result for result in self._results if result.kind.stage == stage)
            rows += [[stage, *_row(entry)] for entry in self.of(first) if entry["step_calls"]]
        headers = ["stage", "group", "ranks", "operation", "calls", "MiB", "MiB sent", "across nodes", "across pools"]
        return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)

    def _entries(self, result: KindResult) -> list[tuple[dict[str, Any], Sent]]:
        """The entries of a record, those of one name as one: messages have an entry for each receiver."""
        found: dict[tuple[Any, ...], tuple[dict[str, Any], Sent]] = {}
        for recorded in result.record.get("traffic", ()):
            key = recorded["group"], recorded["size"], recorded["operation"]
            entry, sent = found.get(key, (self._named(recorded), Sent()))
            for name in _SUMMED:
                entry[name] += recorded[name]
            found[key] = entry, sent.plus(self._placed.sent(result.kind, recorded))
        return list(found.values())

    def _named(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """An entry without counts."""
        group = recorded["group"]
        messages = self._bridges.messages_of(group)
        return {
            "group": group if messages is None else str(messages),
            "size": recorded["size"],
            "operation": recorded["operation"],
            **dict.fromkeys(_SUMMED, 0),
        }


def _row(entry: Mapping[str, Any]) -> list[Any]:
    names = ("step_bytes", "sent_bytes", "across_nodes_bytes", "across_pools_bytes")
    sizes = [f"{entry[name] / _MIB:,.3f}" for name in names]
    return [entry["group"], entry["size"], entry["operation"], f"{entry['step_calls']:,}", *sizes]
