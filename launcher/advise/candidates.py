"""Other sizes of a run's modules on the same number of ranks. Pure."""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

from mimo_role import ModuleLayout, ModuleSizes, Topology
from mimo_role.topology.grid import RankGrid

MOST = 5_000
"""Layouts that are compared; of more, only those whose modules but the last have multiples of 2, 4, 8, ... ranks."""

Layout = Mapping[str, ModuleSizes]
"""The sizes of all modules."""


@dataclass(frozen=True)
class Axes:
    """Sizes of a module's axes that do not depend on its number of ranks."""

    tp: int
    pp: int


@dataclass(frozen=True)
class Candidates:
    """The layouts to compare."""

    layouts: Sequence[Layout]
    multiple: int
    """All modules but the last have a multiple of so many ranks."""


def sizes_of(topology: Topology) -> dict[str, ModuleSizes]:
    """The sizes from which `Topology.from_modules` makes a topology again, with ranks in the order of the modules."""
    first_on: dict[range, str] = {}
    found = {}
    for name, grid in sorted(topology.grids.items(), key=lambda item: item[1].rank_offset):
        partner = first_on.setdefault(grid.ranks, name)
        shares = topology.layout is ModuleLayout.NON_COLOCATED and partner != name
        found[name] = replace(
            _axes_of(grid, topology.expert_grids.get(name)),
            colocate_with=partner if shares else None,
            after=topology.after[name] or None,
        )
    return found


def candidates(present: Layout, world_size: int, allowed: Mapping[str, Collection[Axes]], *, colocated: bool) -> Candidates:
    """All layouts of a world, as far as they are not too many.

    Args:
        present: the layout that ran.
        world_size: the number of ranks of all layouts.
        allowed: by module, the sizes that it may have beside dp.
        colocated: whether all modules are on all ranks.
    """
    shares = [list(present)] if colocated else _shares(present)
    multiple = 1
    while _count(present, shares, world_size, allowed, multiple) > MOST and multiple < world_size:
        multiple *= 2
    possible = [_possible(present, names, allowed, multiple, world_size) for names in shares[:-1]]
    splits = _splits(world_size, [*possible, _possible(present, shares[-1], allowed, 1, world_size)])
    layouts = [
        dict(part for of_share in parts for part in of_share.items())
        for split in splits
        for parts in product(
            *(list(_sized(present, names, allowed, ranks)) for names, ranks in zip(shares, split, strict=True))
        )
    ]
    return Candidates([{name: layout[name] for name in present} for layout in layouts], multiple)


def _axes_of(grid: RankGrid, experts: RankGrid | None) -> ModuleSizes:
    sizes: dict[str, Any] = {name: grid.axis_size(name) for name in grid.dim_names}
    if experts is not None:
        of_experts = {name: experts.axis_size(name) for name in experts.dim_names}
        sizes |= {name: of_experts[name] for name in ("expt_tp", "ep", "expt_gtp_remat") if name in of_experts}
    return replace(ModuleSizes(order=grid.dim_names), **sizes)


def _shares(present: Layout) -> list[list[str]]:
    """The modules that share ranks, in the order of their ranks."""
    found: dict[str, list[str]] = {}
    for name, sizes in present.items():
        found.setdefault(sizes.colocate_with or name, []).append(name)
    return list(found.values())


def _unit(sizes: ModuleSizes, axes: Axes) -> int:
    """The ranks of one data-parallel replica."""
    return replace(sizes, tp=axes.tp, pp=axes.pp).fixed


def _sized(present: Layout, names: Sequence[str], allowed: Mapping[str, Collection[Axes]], ranks: int) -> Iterator[Layout]:
    """The modules of one share on so many ranks."""
    fitting = [[axes for axes in allowed[name] if ranks % _unit(present[name], axes) == 0] for name in names]
    for chosen in product(*fitting):
        yield {
            name: replace(present[name], tp=axes.tp, pp=axes.pp, dp=ranks // _unit(present[name], axes))
            for name, axes in zip(names, chosen, strict=True)
        }


def _ways(present: Layout, names: Sequence[str], allowed: Mapping[str, Collection[Axes]], ranks: int) -> int:
    """How many layouts one share has on so many ranks."""
    return math.prod(sum(ranks % _unit(present[name], axes) == 0 for axes in allowed[name]) for name in names)


def _possible(
    present: Layout, names: Sequence[str], allowed: Mapping[str, Collection[Axes]], multiple: int, world_size: int
) -> list[int]:
    """The numbers of ranks that one share can have."""
    return [ranks for ranks in range(multiple, world_size + 1, multiple) if _ways(present, names, allowed, ranks)]


def _splits(total: int, possible: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """All ways to choose one number of each list so that they add up."""
    if len(possible) == 1:
        at = bisect_left(possible[0], total)
        return [(total,)] if total in possible[0][at : at + 1] else []
    return [(first, *rest) for first in possible[0] if first < total for rest in _splits(total - first, possible[1:])]


def _count(
    present: Layout, shares: Sequence[Sequence[str]], world_size: int, allowed: Mapping[str, Collection[Axes]], multiple: int
) -> int:
    """The number of layouts, without making them."""

    @cache
    def ways(share: int, ranks: int) -> int:
        return _ways(present, shares[share], allowed, ranks)

    @cache
    def count(share: int, left: int) -> int:
        if share == len(shares) - 1:
            return ways(share, left)
        return sum(ways(share, own) * count(share + 1, left - own) for own in range(multiple, left, multiple))

    return count(0, world_size)
