"""What ranks of a kind send in a step, and what of it crosses nodes and pools, by the plan's placement. Pure arithmetic.

Collectives are counted as rings, in which each rank of a group sends to the next one in ascending order and the last to the
first. A ring of n ranks is NCCL's algorithm for large messages, and the bytes are those of nccl-tests
(https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md): of S bytes in all, each rank sends 2(n-1)/n S for an
all-reduce and (n-1)/n S for an all-gather or a reduce-scatter; in a broadcast or a reduce, n-1 ranks send S. The ranks that a
group has on one node follow each other, as in NCCL's rings, which enter and leave each node once. In an all-to-all, scatter or
gather, parts go from rank to rank. Messages of bridges go from sender to receiver.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.bridge_peers import BridgePeers
from launcher.rehearse.kinds import Kind
from mimo_role.groups.rounds import schedule
from mimo_role.groups.row_set import RowSet

_RINGS: Mapping[str, Callable[[int], float]] = {
    "all_reduce": lambda size: 2 * (size - 1) / size,
    "all_gather": lambda size: size - 1,  # the bytes counted are those of the rank's own part
    "reduce_scatter": lambda size: (size - 1) / size,
    "broadcast": lambda size: (size - 1) / size,
    "reduce": lambda size: (size - 1) / size,
}
"""Bytes that a rank sends for one byte that it passes to the operation, a mean over the ring."""

_RANK_TO_RANK = ("all_to_all", "scatter", "gather")

Pairs = Iterable[tuple[int, int]]
"""Senders and receivers."""

Shares = tuple[float, float]
"""Of what ranks send, the part that crosses nodes, and the part that crosses pools."""


@dataclass(frozen=True)
class Sent:
    """Bytes that are sent in a step."""

    bytes: float = 0
    across_nodes: float = 0
    across_pools: float = 0

    @classmethod
    def of(cls, sent: float, shares: Shares) -> "Sent":
        """Bytes of which these shares cross nodes and pools."""
        return cls(sent, sent * shares[0], sent * shares[1])

    def plus(self, other: "Sent", times: int = 1) -> "Sent":
        """The sum with the bytes of as many other ranks."""
        return Sent(
            self.bytes + other.bytes * times,
            self.across_nodes + other.across_nodes * times,
            self.across_pools + other.across_pools * times,
        )

    def as_dict(self) -> dict[str, int]:
        """The JSON form, in whole bytes."""
        return {
            "sent_bytes": round(self.bytes),
            "across_nodes_bytes": round(self.across_nodes),
            "across_pools_bytes": round(self.across_pools),
        }


class PlacedTraffic:
    """The traffic of kinds of ranks on the nodes of a plan."""

    def __init__(self, plan: LaunchPlan, bridges: BridgePeers) -> None:
        self._nodes = [number for number, node in enumerate(plan.nodes) for _ in node.ranks]
        self._pools = [node.pool for node in plan.nodes for _ in node.ranks]
        self._bridges = bridges
        group_sets = [groups for round_ in schedule(plan.topology, plan.groups).rounds for groups in round_.group_sets]
        self._rows = {groups.names[0]: groups.rows for groups in group_sets}
        self._ring_shares = lru_cache(maxsize=None)(self._compute_ring_shares)
        self._ring_shares_by_rank = lru_cache(maxsize=None)(self._compute_ring_shares_by_rank)

    def sent(self, kind: Kind, entry: Mapping[str, Any]) -> Sent:
        """What a rank of a kind sends in a step, a mean over its groups and the ranks of the kind.

        Args:
            kind: of the ranks.
            entry: of the record of its representative (`mimo_role/rehearsal/traffic.py`).
        """
        operation, size, passed = entry["operation"], entry["size"], entry["step_bytes"]
        ranks = tuple(rank for run in entry["ranks"] for rank in range(*run))
        if operation == "send":
            return Sent.of(passed, self._shares(self._messages(kind, entry["group"], ranks[0])))
        if operation in _RINGS:
            return Sent.of(_RINGS[operation](size) * passed, self._mean_ring_shares(kind, entry["group"], ranks))
        if operation in _RANK_TO_RANK:
            sent = (size - 1) / size * passed
            own = kind.representative
            return Sent.of(sent, self._shares((own, peer) for peer in ranks if peer != own))
        return Sent()

    def _messages(self, kind: Kind, group: str, receiver: int) -> Pairs:
        messages = self._bridges.messages_of(group)
        if messages is None:
            return [(kind.representative, receiver)]
        return self._bridges.pairs(messages, kind.ranks, kind.representative, receiver)

    def _mean_ring_shares(self, kind: Kind, group: str, ranks: tuple[int, ...]) -> Shares:
        """Of a group in the plan, the mean over the rings of the kind's ranks; others are known of the representative."""
        rows = self._rows.get(group)
        if rows is None or rows.row_of(kind.representative) != ranks:
            return self._ring_shares(ranks)
        by_rank = self._ring_shares_by_rank(rows)
        found = [by_rank[rank] for rank in kind.ranks]
        return sum(nodes for nodes, _ in found) / len(found), sum(pools for _, pools in found) / len(found)

    def _compute_ring_shares_by_rank(self, rows: RowSet) -> dict[int, Shares]:
        return {rank: shares for row in rows.rows() for shares in [self._ring_shares(row)] for rank in row}

    def _compute_ring_shares(self, ring: tuple[int, ...]) -> Shares:
        return self._shares(zip(ring, (*ring[1:], ring[0]), strict=True))

    def _shares(self, pairs: Pairs) -> Shares:
        listed = list(pairs)
        return _crossing(listed, self._nodes), _crossing(listed, self._pools)


def _crossing(pairs: Sequence[tuple[int, int]], places: Sequence[object]) -> float:
    return sum(places[sender] != places[receiver] for sender, receiver in pairs) / max(len(pairs), 1)
