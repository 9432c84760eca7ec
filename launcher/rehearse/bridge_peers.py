"""To which ranks the ranks of a kind send over a bridge, by those of the rank that was rehearsed. Pure arithmetic."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from mimo_role import Topology
from mimo_role.topology.lanes import lane_coords, lane_count, lane_of
from mimo_role.topology.stage_links import StageLink, stage_links


class BridgeMessages(NamedTuple):
    """The messages of one purpose over one bridge."""

    link: StageLink
    tensor: int
    """The number of the tensor, where several cross the link."""
    purpose: str
    """The name of a `Purpose`, in lower case."""

    def __str__(self) -> str:
        tensor = f" tensor {self.tensor}" if self.tensor else ""
        return f"{self.link}{tensor}, {self.purpose.replace('_', ' ')}"

    @property
    def modules(self) -> tuple[str, str]:
        """The modules of the sender and of the receiver."""
        source, target = self.link.source.module, self.link.target.module
        ends = (target, source) if self.purpose.startswith("back") else (source, target)
        return (ends[1], ends[1]) if self.purpose.endswith("among_replicas") else ends


class BridgePeers:
    """The bridges of a world, and who sends to whom over them."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._links = stage_links(topology)
        self._lane_of = lru_cache(maxsize=None)(self._compute_lane_of)
        self._start_of = lru_cache(maxsize=None)(self._compute_start_of)

    def messages_of(self, recorded: str) -> BridgeMessages | None:
        """The messages that a rank has recorded as `bridge 3 forward`; `None` for the name of a group."""
        match = re.fullmatch(r"bridge (\d+) (\w+)", recorded)
        if match is None:
            return None
        tensor, number = divmod(int(match[1]), len(self._links))
        return BridgeMessages(self._links[number], tensor, match[2])

    def pairs(self, messages: BridgeMessages, ranks: Sequence[int], sender: int, receiver: int) -> Iterator[tuple[int, int]]:
        """For each of some ranks, itself and whom it sends to as one of them, `sender`, sends to `receiver`.

        A rank on another lane sends to the lane at the same distance from the first one with which it shares samples, and there
        to the rank with the receiver's coordinates along the other axes. These may differ for other tp and cp ranks; both are
        on one node and pool unless rows of tp or cp cross nodes.
        """
        own, other = messages.modules
        lanes, others = (lane_count(self._topology.grids[name]) for name in messages.modules)
        to = self._lane_of(other, receiver)
        distance = to - self._lane_of(own, sender) * others // lanes
        place = receiver - self._start_of(other, to)
        for rank in ranks:
            lane = self._lane_of(own, rank) * others // lanes + distance
            yield rank, self._start_of(other, min(max(lane, 0), others - 1)) + place

    def _compute_lane_of(self, module: str, rank: int) -> int:
        return lane_of(self._topology.grids[module], rank).number

    def _compute_start_of(self, module: str, lane: int) -> int:
        grid = self._topology.grids[module]
        return grid.rank_at(lane_coords(grid, lane))
