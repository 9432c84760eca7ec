"""Which samples of a micro-batch one rank reads, and for which modules. Pure arithmetic."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias

from mimo_role.errors import DataError
from mimo_role.resharding.samples import lane_samples
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.lanes import lane_count, lane_of
from mimo_role.topology.topology import Topology

Needs: TypeAlias = Mapping[str, Collection[int] | Literal["all"]]
"""By module, the stages that read samples; -1 is the last."""

AssignLanes: TypeAlias = Mapping[str, Callable[[Sequence[int], int], Sequence[int]]]
"""By module, a function of a micro-batch's indices and the number of lanes: the lane of each sample."""


class LaneReads:
    """The reads of one rank."""

    def __init__(self, topology: Topology, rank: int, needs: Needs | None, assign_lanes: AssignLanes | None) -> None:
        """
        Raises:
            DataError: a module or stage that does not exist.
        """
        self._topology = topology
        self._assign = dict(assign_lanes or {})
        for argument, given in (("needs", needs or {}), ("assign_lanes", self._assign)):
            for name in given:
                if name not in topology.grids:
                    raise DataError(f"{argument}: no module {name!r}; there are {', '.join(topology.grids)}")
        stages = {name: _stages(topology, name, (needs or {}).get(name)) for name in topology.grids}
        coords = topology.coords_of(rank)
        self._own_lanes = {
            name: lane_of(topology.grids[name], rank).number for name, at in coords.items() if at["pp"] in stages[name]
        }

    @property
    def modules(self) -> list[str]:
        """The modules that the rank reads samples for."""
        return list(self._own_lanes)

    def assigned_lanes(self, indices: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The lane of each sample, for the modules that have an assignment of their own.

        Raises:
            DataError: it is not one lane for each sample.
        """
        found = {}
        for module, assign in self._assign.items():
            lanes = self._lanes_of(module)
            assigned = tuple(assign(indices, lanes))
            if len(assigned) != len(indices) or any(lane not in range(lanes) for lane in assigned):
                raise DataError(
                    f"assign_lanes[{module!r}] returned {assigned!r:.80} for {len(indices)} samples; one lane for each, "
                    f"0 to {lanes - 1}"
                )
            found[module] = assigned
        return found

    def of(self, indices: Sequence[int], assigned: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """By module, those of a micro-batch's indices that the rank's lane has, in the micro-batch's order."""
        found = {}
        for module, own in self._own_lanes.items():
            if module in assigned:
                found[module] = [index for index, lane in zip(indices, assigned[module], strict=True) if lane == own]
            else:
                found[module] = [indices[at] for at in lane_samples(len(indices), self._lanes_of(module), own)]
        return found

    def _lanes_of(self, module: str) -> int:
        return lane_count(self._topology.grids[module])


def _stages(topology: Topology, module: str, needs: Collection[int] | Literal["all"] | None) -> set[int]:
    """The stages of a module that read samples."""
    count = topology.grids[module].axis_size("pp")
    if needs == "all":
        return set(range(count))
    if needs is None:
        has_targets = module == MIMO_LANGUAGE_MODULE_KEY or module in topology.module_graph.ends
        needs = (0, -1) if has_targets else (0,)
    for stage in needs:
        if stage not in range(-count, count):
            raise DataError(f"needs[{module!r}]: no stage {stage!r}; there are {count}, from 0, and -1 is the last")
    return {int(stage) % count for stage in needs}
