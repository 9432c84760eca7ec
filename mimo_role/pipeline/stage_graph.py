"""The graph of pipeline stages of all modules. Pure arithmetic."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from itertools import combinations

from mimo_role.errors import ScheduleError
from mimo_role.topology.stage_links import StageId, StageLink, last_stage
from mimo_role.topology.topology import Topology

Destination = StageId | str | Collection[StageId | str]
"""Where one tensor of a module's output is needed: a stage, a module (its first stage), or several of them."""


class StageGraph:
    """The stages of all modules: which stage feeds which, and which share ranks."""

    def __init__(self, topology: Topology, destinations: Mapping[str, Mapping[str, Destination]] | None = None) -> None:
        """
        Args:
            topology: the world.
            destinations: by module and name of a tensor, where that tensor of the module's output is needed; others go to the
                first stage of each module that takes the output.

        Raises:
            ScheduleError: a destination that does not take the module's output.
        """
        self.after: dict[StageId, tuple[StageId, ...]] = {}
        """The stages that each stage feeds; none for one that computes a loss."""
        self.before: defaultdict[StageId, list[StageId]] = defaultdict(list)
        self.ranks: dict[StageId, frozenset[int]] = {}
        self._usual: dict[StageId, tuple[StageId, ...]] = {}
        """The same without destinations."""
        self._destinations: dict[tuple[StageId, str], tuple[StageId, ...]] = {}
        for module, grid in topology.grids.items():
            last = last_stage(topology, module)
            for stage in range(last.stage + 1):
                at = StageId(module, stage)
                self._usual[at] = (
                    (StageId(module, stage + 1),)
                    if at != last
                    else tuple(StageId(to, 0) for to in topology.module_graph.feeds[module])
                )
                self.ranks[at] = frozenset(rank for rank in grid.ranks if grid.coords(rank)["pp"] == stage)
        for module, of_tensors in (destinations or {}).items():
            self._add_destinations(topology, module, of_tensors)
        for at, usual in self._usual.items():
            more = (stage for (source, _), stages in self._destinations.items() if source == at for stage in stages)
            self.after[at] = tuple(dict.fromkeys([*usual, *more]))
        for at, after in self.after.items():
            for target in after:
                self.before[target].append(at)
        self.distance: dict[StageId, int] = {}
        """The most links on a way from each stage to one that computes a loss."""
        for at in self.after:
            self._find_distance(at)
        self.sharing: defaultdict[StageId, set[StageId]] = defaultdict(set)
        for one, other in combinations(self.ranks, 2):
            if self.ranks[one] & self.ranks[other]:
                self.sharing[one].add(other)
                self.sharing[other].add(one)

    @property
    def links(self) -> list[StageLink]:
        """All pairs of stages of which one feeds the other."""
        return [StageLink(at, target) for at, after in self.after.items() for target in after]

    def of_rank(self, rank: int) -> list[StageId]:
        """The stages that a rank runs."""
        return [at for at, ranks in self.ranks.items() if rank in ranks]

    def of_modules(self, modules: Collection[str]) -> set[StageId]:
        """The stages of some modules."""
        return {at for at in self.after if at.module in modules}

    def targets(self, at: StageId, name: str) -> tuple[StageId, ...]:
        """The stages to which a stage sends the tensor of this name."""
        return self._destinations.get((at, name), self._usual[at])

    def named_destinations(self, at: StageId) -> set[str]:
        """The tensors of a stage that have destinations of their own."""
        return {name for source, name in self._destinations if source == at}

    def reached_from(self, stages: Collection[StageId]) -> set[StageId]:
        """These stages, and all that they feed, over any number of others."""
        found: set[StageId] = set()
        new = set(stages)
        while new:
            found |= new
            new = {target for at in new for target in self.after[at]} - found
        return found

    def _add_destinations(self, topology: Topology, module: str, of_tensors: Mapping[str, Destination]) -> None:
        if module not in topology.grids:
            raise ScheduleError(f"destinations: no module {module!r}; there are {', '.join(topology.grids)}")
        feeds = topology.module_graph.feeds[module]
        for name, given in of_tensors.items():
            stages = [given] if isinstance(given, StageId | str) else list(given)
            if not stages or not all(isinstance(stage, StageId | str) for stage in stages):
                raise ScheduleError(
                    f"destinations: {name!r} of {module!r} goes to {given!r}; name a module or a StageId, or several"
                )
            found = [StageId(stage, 0) if isinstance(stage, str) else stage for stage in stages]
            for at in found:
                if at.module not in feeds:
                    taken = ", ".join(feeds) or "no module"
                    raise ScheduleError(f"destinations: {module!r} feeds {taken}, so {name!r} cannot go to {at}")
                stages_there = topology.grids[at.module].axis_size("pp")
                if not 0 <= at.stage < stages_there:
                    raise ScheduleError(
                        f"destinations: {name!r} of {module!r} goes to {at}, but there are {stages_there} stages"
                    )
            self._destinations[last_stage(topology, module), name] = tuple(dict.fromkeys(found))

    def _find_distance(self, at: StageId) -> int:
        if at not in self.distance:
            self.distance[at] = max((1 + self._find_distance(target) for target in self.after[at]), default=0)
        return self.distance[at]
