"""The schedule of rounds in which process groups are created: a pure value.

In a round a rank of the world creates at most one group, its row along some axes. So under NCCL a round is one split of the
world's communicator. The group of one rank, which every rank has, needs no other rank and so no round.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from mimo_role.errors import TopologyError
from mimo_role.groups.communicators import check_priorities, communicator_of
from mimo_role.groups.families import (
    EMBEDDING,
    SECOND_GROUPS,
    families_of,
    has_embedding_groups,
    locate,
)
from mimo_role.groups.options import Communicator, GroupOptions
from mimo_role.groups.row_set import RowSet
from mimo_role.topology.topology import Topology


@dataclass(frozen=True)
class GroupSet:
    """Rows for which groups are created."""

    rows: RowSet
    options: Communicator
    """How its groups are created."""
    names: tuple[str, ...]
    """All names of the rows, such as `language.tp` and `language.ep`, by the axes longer than one; groups get the first."""


@dataclass(frozen=True)
class Round:
    """Group sets of disjoint spans, whose groups are created at the same time."""

    group_sets: tuple[GroupSet, ...]

    def group_set_of(self, rank: int) -> GroupSet | None:
        """The rows to which the group that the rank creates belongs; `None` if it creates none."""
        found = next((groups for groups in self.group_sets if rank in groups.rows.span), None)
        return found if found is not None and len(found.rows.row_of(rank)) > 1 else None

    def rows(self) -> Iterator[tuple[int, ...]]:
        """The ranks of each group, in the order of their first ranks."""
        for rows in sorted((groups.rows for groups in self.group_sets), key=lambda rows: rows.span.start):
            yield from rows.rows()


@dataclass(frozen=True)
class Schedule:
    """All rounds of a world."""

    world_size: int
    rounds: tuple[Round, ...]
    on_world: tuple[GroupSet, ...]
    """Rows that are the whole world: the world's group, which exists before any round."""

    def __len__(self) -> int:
        return len(self.rounds)

    def makes(self, rows: RowSet, communicator: Communicator | None = None) -> bool:
        """Whether each rank of the rows has its group after the last round. Every rank has a group of one rank.

        Args:
            rows: of any span.
            communicator: how the groups are created; default: any but second groups.
        """
        made = [groups for round_ in self.rounds for groups in round_.group_sets]
        return rows.row_size == 1 or any(
            groups.rows == rows and (groups.options == communicator if communicator is not None else not groups.options.purpose)
            for groups in (*made, *self.on_world)
        )

    def __str__(self) -> str:
        lines = [f"{len(self)} rounds for {self.world_size} ranks"]
        for number, round_ in enumerate(self.rounds):
            sets = "; ".join(
                f"{', '.join(groups.names)} ({groups.rows.row_count} groups of {groups.rows.row_size})"
                for groups in round_.group_sets
            )
            lines.append(f"{number}: {sets}")
        return "\n".join(lines)

    def as_list(self) -> list[list[dict[str, Any]]]:
        """The JSON form: the groups that are created in each round, and their sizes."""
        return [
            [
                {"names": list(groups.names), "groups": groups.rows.row_count, "group_size": groups.rows.row_size}
                for groups in round_.group_sets
            ]
            for round_ in self.rounds
        ]


def schedule(topology: Topology, options: Mapping[str, GroupOptions] | None = None) -> Schedule:
    """The rounds for a topology: its distinct row sets, those of disjoint spans at the same time.

    Rows of one rank need no round. Rows that are the whole world use the world's group.

    Args:
        topology: the world.
        options: by module; others have the defaults.

    Raises:
        TopologyError: the options name an unknown module or axis.
    """
    options = options or {}
    for module in options:
        if module not in topology.grids:
            raise TopologyError(f"modules.{module}", f"no such module; there are {', '.join(topology.grids)}")
    whole = RowSet(range(topology.world_size), ((1, topology.world_size),))
    by_span: dict[range, dict[tuple[RowSet, Communicator], list[str]]] = {}
    on_world: dict[tuple[RowSet, Communicator], list[str]] = {}
    for module, grid in topology.grids.items():
        own = options.get(module, GroupOptions())
        check_priorities(topology, module, own)
        for name, rows, communicator in _row_sets(topology, module, own):
            key = (rows, communicator)
            home = on_world if key == (whole, Communicator()) else by_span.setdefault(grid.ranks, {})
            names = home.setdefault(key, [])
            if name not in names:
                names.append(name)
    columns = [[_group_set(key, names) for key, names in found.items()] for found in by_span.values()]
    rounds = [Round(tuple(groups for groups in step if groups is not None)) for step in zip_longest(*columns)]
    return Schedule(topology.world_size, tuple(rounds), tuple(_group_set(key, names) for key, names in on_world.items()))


def _row_sets(topology: Topology, module: str, options: GroupOptions) -> Iterator[tuple[str, RowSet, Communicator]]:
    """The module's rows of more than one rank, with their names."""
    for axes in families_of(topology, module, options):
        grid, own = locate(topology, module, axes)
        rows = RowSet.of(grid, own)
        if rows.row_size > 1:
            name = axes[0] if axes[0] in SECOND_GROUPS else "_".join(axis for axis in own if grid.axis_size(axis) > 1)
            yield f"{module}.{name}", rows, communicator_of(topology, module, options, axes)
    rows = RowSet.ends_of(topology.grids[module], "pp")
    if has_embedding_groups(module, options) and rows.row_size > 1:
        yield f"{module}.{EMBEDDING}", rows, communicator_of(topology, module, options, (EMBEDDING,))


def _group_set(key: tuple[RowSet, Communicator], names: list[str]) -> GroupSet:
    return GroupSet(*key, tuple(names))
