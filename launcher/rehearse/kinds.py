"""The kinds of ranks of a world: classes of ranks that run the same code on data of the same shapes. Pure arithmetic.

Two ranks are of one kind if they run the same stages of the same modules and have, along each axis, the same position: lanes
are first, middle or last, since a batch that lanes do not divide gives the last one more samples than the first; tp, cp and ep
ranks are first or another. Lanes that exchange samples with different numbers of another module's lanes are of different kinds.
Rank 0 and the logging rank are first along all axes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from launcher.formatting import ranges, stage_of
from mimo_role import Topology
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.lanes import lane_count, lane_of

_SHOWN_RANKS = 60
"""Characters of a list of ranks in a message."""

Places = tuple[tuple[str, ...], ...]
"""By module of a rank, its position along each axis longer than one."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Ranks that do the same."""

    stage: str
    """Their modules, each with its stage where it has several: `language.pp1`."""
    places: Places
    ranks: tuple[int, ...]
    """In ascending order."""
    representative: int
    """The rank that is rehearsed: on the lowest lane, and last along tp, cp and ep, where shards may be smaller."""

    @property
    def name(self) -> str:
        """`language.pp1 (middle lanes, tp 0)`."""
        places = "; ".join(", ".join(place) for place in self.places if place)
        return f"{self.stage} ({places})" if places else self.stage


def kinds_of(topology: Topology) -> list[Kind]:
    """The kinds of a world, in the order in which activations pass through them; the kind of rank 0 is the first."""
    found: dict[tuple[str, Places], list[int]] = {}
    places = _PlacesOf(topology)
    for rank in range(topology.world_size):
        found.setdefault((stage_of(topology, rank), places.of(rank)), []).append(rank)
    kinds = [
        Kind(stage=stage, places=place, ranks=tuple(ranks), representative=_representative(topology, ranks))
        for (stage, place), ranks in found.items()
    ]
    return sorted(kinds, key=lambda kind: (0 not in kind.ranks, _depth(topology, kind.representative), kind.ranks[0]))


def described(ranks: Iterable[int]) -> str:
    """`1,152 ranks, 3328-4479`; long lists are cut."""
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return f"rank {ordered[0]}"
    listed = ranges(ordered)
    if len(listed) > _SHOWN_RANKS:
        listed = f"{listed[:_SHOWN_RANKS].rpartition(', ')[0]}, ... {ordered[-1]}"
    return f"{len(ordered):,} ranks, {listed}"


class _PlacesOf:
    """The positions of ranks, each computed once for a lane."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._of_lane = lru_cache(maxsize=None)(self._lane_place)

    def of(self, rank: int) -> Places:
        return tuple(tuple(self._of_module(module, rank)) for module in self._topology.modules_of(rank))

    def _of_module(self, module: str, rank: int) -> Iterator[str]:
        grid, experts = self._topology.grids[module], self._topology.expert_grids.get(module)
        coords = grid.coords(rank)
        yield from self._of_lane(module, lane_of(grid, rank).number, coords["pp"])
        for axis in ("tp", "cp"):
            yield from _first_or_not(grid, axis, coords[axis])
        if experts is not None:
            yield from _first_or_not(experts, "ep", experts.coords(rank)["ep"])

    def _lane_place(self, module: str, lane: int, stage: int) -> tuple[str, ...]:
        lanes = lane_count(self._topology.grids[module])
        if lanes == 1:
            return ()
        found = "first lane" if lane == 0 else "last lane" if lane == lanes - 1 else "middle lanes"
        overlaps = [self._overlap(lane, lanes, other) for other in self._neighbours(module, stage)]
        return (found, *(text for text in overlaps if text))

    def _neighbours(self, module: str, stage: int) -> Iterator[str]:
        """The modules with which a stage of a module exchanges samples over bridges, other than its own."""
        if stage == 0:
            yield from self._topology.after[module]
        if stage == self._topology.grids[module].axis_size("pp") - 1:
            yield from self._topology.module_graph.feeds[module]

    def _overlap(self, lane: int, lanes: int, other: str) -> str:
        """How many lanes of another module have samples of this one, where samples are split evenly."""
        others = lane_count(self._topology.grids[other])
        if others == lanes:
            return ""
        first, last = lane * others // lanes, -(-(lane + 1) * others // lanes)
        return f"{last - first} of {other}'s lanes"


def _first_or_not(grid: RankGrid, axis: str, at: int) -> Iterator[str]:
    size = grid.axis_size(axis)
    if size > 1:
        yield f"{axis} 0" if at == 0 else f"{axis} 1" if size == 2 else f"{axis} 1-{size - 1}"


def _representative(topology: Topology, ranks: list[int]) -> int:
    """The first rank of a kind on its lowest lane, and there the last along the other axes."""
    module = topology.modules_of(ranks[0])[0]
    grid = topology.grids[module]
    lowest = min(lane_of(grid, rank).number for rank in ranks)
    return max(rank for rank in ranks if lane_of(grid, rank).number == lowest)


def _depth(topology: Topology, rank: int) -> tuple[int, int]:
    """How far behind the first encoders a rank's stages are: modules, then stages."""
    depths = [(len(topology.module_graph.before(module)), coords["pp"]) for module, coords in topology.coords_of(rank).items()]
    return max(depths)
