"""The lower part of a layout: pools, their nodes, and the ranks on each."""

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element

from launcher.formatting import counted
from launcher.run_report.drawing import MARGIN, Drawing, box, label, titled
from launcher.run_report.layout import Layout, NodeGroup, PoolBox, RankCell, RoleCount

_CELL_WIDTH, _CELL_HEIGHT, _GAP = 104, 42, 6
_CELLS_PER_ROW = 4
_LEAST_CARD_WIDTH, _CARD_GAP = 236, 10
_ROW_HEIGHT = 24
_MOST_ROWS = 8
"""Of more kinds of ranks on a node, the first ones are listed."""
_MOST_WIDTH = 974
"""Unless the modules need more: two nodes of eight ranks beside each other."""
_INSET = MARGIN + 12.0
_PADDING, _HEADING, _POOL_HEADING = 10, 30, 34
_Colors = Callable[[str], int]


def pools_width(layout: Layout) -> float:
    """The width in which the nodes of each pool fit beside each other, but at most `_MOST_WIDTH`."""
    beside = [[_size(group, _LEAST_CARD_WIDTH)[0] + _CARD_GAP for group in pool.groups] for pool in layout.pools]
    return min(_MOST_WIDTH, max(map(sum, beside)) - _CARD_GAP + 2 * _INSET)


def draw_pools(layout: Layout, color_of: _Colors, *, top: float, width: float) -> Drawing:
    """All pools below each other, from `top` on, as wide as `width`."""
    parts: list[Element] = []
    y = top
    for pool in layout.pools:
        cards, end = _flow(pool, color_of, y + _POOL_HEADING, width)
        parts += [box(MARGIN, y, width - 2 * MARGIN, end - y, "pool", 10), *_pool_heading(pool, y, width), *cards]
        y = end + 14
    return Drawing(parts=parts, width=width, height=y - 14 + MARGIN)


def _pool_heading(pool: PoolBox, y: float, width: float) -> list[Element]:
    left_out = f", {counted(pool.left_out, 'further group')} of nodes not drawn" if pool.left_out else ""
    size = f"{counted(pool.nodes, 'node')}, {counted(pool.ranks, 'rank')}{left_out}"
    return [
        label(_INSET, y + 22, f"pool {pool.name}", "strong", limit=40),
        label(width - _INSET, y + 22, size, "small quiet", "end"),
    ]


def _flow(pool: PoolBox, color_of: _Colors, top: float, width: float) -> tuple[list[Element], float]:
    """The nodes of a pool in rows, and the lower end of the pool."""
    left, right = _INSET, width - _INSET
    columns = int((right - left + _CARD_GAP) // (_LEAST_CARD_WIDTH + _CARD_GAP))
    folded_width = (right - left + _CARD_GAP) / columns - _CARD_GAP
    parts: list[Element] = []
    x, y, row_height = left, top, 0.0
    for group in pool.groups:
        card_width, card_height = _size(group, folded_width)
        if x > left and x + card_width > right + 0.5:
            x, y, row_height = left, y + row_height + _CARD_GAP, 0.0
        parts.append(_card(group, color_of, x, y, card_width, card_height))
        x += card_width + _CARD_GAP
        row_height = max(row_height, card_height)
    return parts, y + row_height + 12


def _size(group: NodeGroup, folded_width: float) -> tuple[float, float]:
    if group.cells:
        columns = min(len(group.cells), _CELLS_PER_ROW)
        rows = -(-len(group.cells) // _CELLS_PER_ROW)
        width = max(2 * _PADDING + columns * (_CELL_WIDTH + _GAP) - _GAP, 130)
        return width, _HEADING + rows * (_CELL_HEIGHT + _GAP) - _GAP + _PADDING
    rows = min(len(group.contents), _MOST_ROWS + 1)
    return folded_width, _HEADING + 18 + rows * (_ROW_HEIGHT + 4) - 4 + _PADDING


def _card(group: NodeGroup, color_of: _Colors, x: float, y: float, width: float, height: float) -> Element:
    first, last = group.nodes[0], group.nodes[-1]
    name = first.name if first is last else f"{first.name} … {last.name}"
    ranks = f"{first.first_rank}-{last.ranks[-1]}" if last.ranks[-1] > first.first_rank else str(first.first_rank)
    parts = [box(x, y, width, height, "card"), label(x + _PADDING, y + 20, name, "strong small", limit=int(width / 8.5))]
    if group.cells:
        parts += _cells(group.cells, color_of, x + _PADDING, y + _HEADING)
        return titled(f"{name}: ranks {ranks}", *parts)
    size = f"{counted(len(group.nodes), 'node')}, ranks {ranks}"
    parts.append(label(x + _PADDING, y + 37, size, "small quiet", limit=36))
    parts += _rows(group.contents, color_of, x + _PADDING, y + _HEADING + 18, width - 2 * _PADDING)
    return titled(f"{name}: {size}", *parts)


def _cells(cells: Sequence[RankCell], color_of: _Colors, x0: float, y0: float) -> list[Element]:
    return [
        _cell(
            cell,
            color_of,
            x0 + index % _CELLS_PER_ROW * (_CELL_WIDTH + _GAP),
            y0 + index // _CELLS_PER_ROW * (_CELL_HEIGHT + _GAP),
        )
        for index, cell in enumerate(cells)
    ]


def _cell(cell: RankCell, color_of: _Colors, x: float, y: float) -> Element:
    middle = x + _CELL_WIDTH / 2
    return titled(
        f"rank {cell.rank}: {cell.label}",
        *_ground(cell.modules, color_of, x, y, _CELL_WIDTH, _CELL_HEIGHT),
        label(middle, y + 18, f"rank {cell.rank}", "small strong", "middle"),
        label(middle, y + 34, cell.place, "small", "middle", limit=16),
    )


def _rows(contents: Sequence[RoleCount], color_of: _Colors, x: float, y: float, width: float) -> list[Element]:
    parts: list[Element] = []
    for index, role in enumerate(contents[:_MOST_ROWS]):
        at = y + index * (_ROW_HEIGHT + 4)
        parts += _ground(role.modules, color_of, x, at, width, _ROW_HEIGHT)
        words = f"{counted(role.ranks, 'rank')} of {role.name}"
        parts.append(label(x + 8, at + 16, words, "small", limit=32))
    if len(contents) > _MOST_ROWS:
        more = f"… {len(contents) - _MOST_ROWS} more kinds of ranks"
        parts.append(label(x + 8, y + _MOST_ROWS * (_ROW_HEIGHT + 4) + 16, more, "small quiet"))
    return parts


def _ground(modules: Sequence[str], color_of: _Colors, x: float, y: float, width: float, height: float) -> list[Element]:
    """A box in the color of the module; where ranks run several, with a stripe for each."""
    if len(modules) == 1:
        return [box(x, y, width, height, f"m{color_of(modules[0])}", 4)]
    part = width / len(modules)
    stripes = [box(x + at * part, y, part, 5, f"m{color_of(name)} l{color_of(name)}", 0) for at, name in enumerate(modules)]
    return [box(x, y, width, height, "pool", 4), *stripes]
