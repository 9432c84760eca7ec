"""The columns of `mimo-launch top`, and how they are arranged in a terminal that is too narrow for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich.cells import cell_len

from launcher.formatting import printable
from launcher.live import quantities
from launcher.live.view import ModuleView
from launcher.top.shares import PARTS, Part

GAP = 2
"""Columns of the terminal between two columns."""
BAR_WIDTHS = (14, 30)
"""The narrowest and the widest bar."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One quantity of all modules."""

    title: str
    cells: tuple[str, ...]
    """By module; empty for the bar, which takes the room that is left."""
    importance: int = 0
    """Of columns that do not fit, those with the least are left out."""
    style: str = ""
    align: Literal["left", "right"] = "right"

    @property
    def is_bar(self) -> bool:
        """Whether it is the bar of shares."""
        return not self.cells

    @property
    def width(self) -> int:
        """The columns of the terminal that it needs."""
        return BAR_WIDTHS[0] if self.is_bar else max(map(cell_len, (self.title, *self.cells)))


def groups_of(modules: Mapping[str, ModuleView], *, ascii_only: bool) -> list[list[Column]]:
    """The columns that have a value for some module, in groups that are kept in one row: rates, shares, the slowest rank."""
    views = list(modules.values())
    known = [[column for column in group if _is_known(column)] for group in _all_columns(views, ascii_only=ascii_only)]
    return [group for group in known if group]


def bands_of(names: Column, groups: Sequence[Sequence[Column]], width: int) -> list[list[Column]]:
    """Tables below each other that are no wider than the terminal, each with the modules' names and some of the groups."""
    bands: list[list[Column]] = []
    for group in groups:
        if bands and width_of([*bands[-1], *group]) <= width:
            bands[-1] += group
        else:
            bands.append(_fitting(names, [*group], width))
    return bands or [[names]]


def width_of(columns: Sequence[Column]) -> int:
    """The columns of the terminal that a table needs."""
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def names_of(modules: Mapping[str, ModuleView]) -> Column:
    """The column of the modules' names."""
    return Column(title="module", cells=tuple(map(printable, modules)), style="bold", align="left")


def _fitting(names: Column, group: list[Column], width: int) -> list[Column]:
    """The group without its least important columns. The last one is shortened when it is drawn, if it must be."""
    while len(group) > 1 and width_of([names, *group]) > width:
        group.remove(min(group, key=lambda column: column.importance))
    return [names, *group]


def _all_columns(views: list[ModuleView], *, ascii_only: bool) -> list[list[Column]]:
    def column(title: str, cell: Callable[[ModuleView], str], importance: int, style: str = "") -> Column:
        return Column(title=title, cells=tuple(map(cell, views)), importance=importance, style=style)

    rates = [
        column("ranks", lambda view: f"{view.ranks:,}", 3),
        column("steps/s", lambda view: quantities.rate(view.steps_per_s), 6),
        column("samples/s", lambda view: quantities.rate(view.samples_per_s), 4),
        column("tokens/s", lambda view: quantities.rate(view.tokens_per_s), 7),
        column("peak memory", _peak, 5),
    ]
    shares = [
        column(f"{part.mark(ascii_only=ascii_only)} {part.name}", partial(_share, part), importance, part.style)
        for part, importance in zip(PARTS, (8, 3, 6, 5, 2), strict=True)
        # Such as collectives where none are recorded.
        if any(part.of(view) for view in views)
    ]
    has_shares = any(view.compute is not None for view in views)
    bars = [Column(title="time of a step", cells=(), importance=7, align="left")] if has_shares else []
    slowest = [Column(title="slowest rank", cells=tuple(map(_slowest, views)), align="left")]
    return [rates, [*bars, *shares], slowest]


def _is_known(column: Column) -> bool:
    return column.is_bar or any(cell != quantities.UNKNOWN for cell in column.cells)


def _share(part: Part, view: ModuleView) -> str:
    return quantities.share(part.of(view))


def _peak(view: ModuleView) -> str:
    return quantities.UNKNOWN if view.peak_gib is None else f"{view.peak_gib:.3g} GiB"


def _slowest(view: ModuleView) -> str:
    if view.slowest is None:
        return quantities.UNKNOWN
    slowest = view.slowest
    return printable(f"{slowest.rank} ({slowest.label}) on {slowest.node}, computes {quantities.seconds(slowest.compute_s)}")
