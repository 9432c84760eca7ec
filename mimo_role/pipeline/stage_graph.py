"""The graph of pipeline stages of all modules. Pure arithmetic."""

from collections import defaultdict
from itertools import combinations
from typing import NamedTuple

from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology


class StageId(NamedTuple):
    """One stage of one module."""

    module: str
    stage: int

    def __str__(self) -> str:
        return f"{self.module} stage {self.stage}"


class StageGraph:
    """The stages of all modules: which stage feeds which, and which share ranks."""

    def __init__(self, topology: Topology) -> None:
        self.after: dict[StageId, StageId | None] = {}
        """The stage that each stage feeds; `None` for the one that computes the loss."""
        self.before: defaultdict[StageId, list[StageId]] = defaultdict(list)
        self.ranks: dict[StageId, frozenset[int]] = {}
        for module, grid in topology.grids.items():
            last = grid.axis_size("pp") - 1
            for stage in range(last + 1):
                at = StageId(module, stage)
                if stage < last:
                    self.after[at] = StageId(module, stage + 1)
                else:
                    self.after[at] = None if module == MIMO_LANGUAGE_MODULE_KEY else StageId(MIMO_LANGUAGE_MODULE_KEY, 0)
                self.ranks[at] = frozenset(rank for rank in grid.ranks if grid.coords(rank)["pp"] == stage)
        for at, after in self.after.items():
            if after is not None:
                self.before[after].append(at)
        self.distance = {at: self._distance(at) for at in self.after}
        self.sharing: defaultdict[StageId, set[StageId]] = defaultdict(set)
        for one, other in combinations(self.ranks, 2):
            if self.ranks[one] & self.ranks[other]:
                self.sharing[one].add(other)
                self.sharing[other].add(one)

    def of_rank(self, rank: int) -> list[StageId]:
        """The stages that a rank runs."""
        return [at for at, ranks in self.ranks.items() if rank in ranks]

    def _distance(self, at: StageId) -> int:
        after = self.after[at]
        return 0 if after is None else 1 + self._distance(after)
