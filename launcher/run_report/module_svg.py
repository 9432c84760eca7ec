"""The upper part of a layout: modules with their stages, and the bridges between them."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from launcher.formatting import counted
from launcher.run_report.drawing import MARGIN, Drawing, box, label, titled
from launcher.run_report.layout import BridgeLine, Layout, ModuleBox, StageBox
from launcher.run_report.markup import element

_STAGE_WIDTH, _STAGE_HEIGHT, _STAGE_GAP = 124, 48, 20
_STAGES_PER_ROW = 4
_MOST_STAGES = 12
"""Of more stages, the first ones and the last are drawn."""
_PADDING, _HEADING = 12, 52
_MODULE_GAP, _BRIDGE_WIDTH = 20, 156
_LABEL_WIDTH = 96
_TOP = 76


@dataclass(frozen=True)
class _Placed:
    module: ModuleBox
    x: float
    y: float
    stages: tuple[StageBox | None, ...]
    """`None` where some are left out."""

    @property
    def width(self) -> float:
        columns = min(len(self.stages), _STAGES_PER_ROW)
        return max(190, 2 * _PADDING + columns * _STAGE_WIDTH + (columns - 1) * _STAGE_GAP)

    @property
    def height(self) -> float:
        rows = -(-len(self.stages) // _STAGES_PER_ROW)
        return _HEADING + rows * (_STAGE_HEIGHT + 10) + _PADDING - 10

    def stage_place(self, index: int) -> tuple[float, float]:
        """The upper left corner of a stage."""
        row, column = divmod(index, _STAGES_PER_ROW)
        inset = (self.width - 2 * _PADDING - _STAGE_WIDTH) / 2 if len(self.stages) == 1 else 0
        x = self.x + _PADDING + inset + column * (_STAGE_WIDTH + _STAGE_GAP)
        return x, self.y + _HEADING + row * (_STAGE_HEIGHT + 10)


def draw_modules(layout: Layout, color_of: Callable[[str], int]) -> Drawing:
    """Modules in columns, each to the right of those whose outputs it takes."""
    placed = _place(layout)
    bridges, bottom = _bridges(layout, placed, max(each.y + each.height for each in placed.values()))
    parts = [_arrow_head(), *_title(layout), *bridges]
    for each in placed.values():
        parts += _module(each, color_of(each.module.name))
    return Drawing(parts=parts, width=max(each.x + each.width for each in placed.values()) + MARGIN, height=bottom + MARGIN)


def _title(layout: Layout) -> list[Element]:
    pools = len(layout.pools)
    nodes = sum(pool.nodes for pool in layout.pools)
    where = counted(nodes, "node") + (f" of {pools} pools" if pools > 1 else "")
    more = f"{counted(layout.world_size, 'rank')} on {where}, {layout.kind}"
    flow = "Arrows: activations; gradients take the way back." if layout.bridges else ""
    return [label(MARGIN, 32, layout.name, "strong", limit=90), label(MARGIN, 54, f"{more}. {flow}", "small quiet", limit=140)]


def _place(layout: Layout) -> dict[str, _Placed]:
    columns: dict[int, list[ModuleBox]] = defaultdict(list)
    for module in layout.modules:
        columns[module.column].append(module)
    heights = {
        number: sum(_Placed(each, 0, 0, _shown(each)).height + _MODULE_GAP for each in modules) - _MODULE_GAP
        for number, modules in columns.items()
    }
    placed: dict[str, _Placed] = {}
    x = float(MARGIN)
    for number in sorted(columns):
        y = _TOP + (max(heights.values()) - heights[number]) / 2
        for module in columns[number]:
            placed[module.name] = _Placed(module, x, y, _shown(module))
            y += placed[module.name].height + _MODULE_GAP
        x += max(placed[module.name].width for module in columns[number]) + _BRIDGE_WIDTH
    return placed


def _shown(module: ModuleBox) -> tuple[StageBox | None, ...]:
    if len(module.stages) <= _MOST_STAGES:
        return module.stages
    return (*module.stages[: _MOST_STAGES - 2], None, module.stages[-1])


def _module(at: _Placed, color: int) -> list[Element]:
    module = at.module
    parts = [
        titled(f"module {module.name}: {counted(module.ranks, 'rank')}", box(at.x, at.y, at.width, at.height, f"m{color}", 10)),
        label(at.x + _PADDING, at.y + 23, module.name, "strong", limit=int(at.width / 9)),
        label(at.x + _PADDING, at.y + 41, _sizes(module), "small quiet", limit=int(at.width / 6.5)),
    ]
    for index, stage in enumerate(at.stages):
        x, y = at.stage_place(index)
        parts += _stage(x, y, stage, module)
        if index and index % _STAGES_PER_ROW:
            way = f"M {x - _STAGE_GAP:g} {y + _STAGE_HEIGHT / 2:g} h {_STAGE_GAP - 3}"
            parts.append(element("path", {"d": way, "class": "way", "marker-end": "url(#layout-head)"}))
    return parts


def _sizes(module: ModuleBox) -> str:
    return " · ".join(filter(None, [counted(module.ranks, "rank"), module.axes]))


def _stage(x: float, y: float, stage: StageBox | None, module: ModuleBox) -> list[Element]:
    middle = x + _STAGE_WIDTH / 2
    if stage is None:
        left_out = len(module.stages) - _MOST_STAGES + 1
        return [label(middle, y + 29, f"… {left_out} more stages …", "small quiet", "middle")]
    name = f"stage pp{stage.stage}" if len(module.stages) > 1 else "one stage"
    place = f" ({stage.stage + 1} of {len(module.stages)})" if len(module.stages) > 1 else ""
    ranks = f"rank{'s' if stage.count > 1 else ''} {stage.ranks}"
    return [
        titled(f"{module.name}, {name}{place}: {ranks}", box(x, y, _STAGE_WIDTH, _STAGE_HEIGHT, "card")),
        label(middle, y + 20, name, "", "middle"),
        label(middle, y + 37, ranks, "small quiet", "middle", limit=19),
    ]


def _bridges(layout: Layout, placed: Mapping[str, _Placed], bottom: float) -> tuple[list[Element], float]:
    """All bridges, and the lower end of those that pass below the modules between their ends."""

    def passes(bridge: BridgeLine) -> bool:
        return placed[bridge.target].module.column - placed[bridge.source].module.column > 1

    parts = []
    # From the upper end to the lower one, so that few of them cross.
    in_order = sorted(layout.bridges, key=lambda each: (passes(each), placed[each.source].y))
    for bridge in in_order:
        source, target = placed[bridge.source], placed[bridge.target]
        leaving = [each for each in in_order if each.source == bridge.source]
        arriving = [each for each in in_order if each.target == bridge.target]
        _, from_y = source.stage_place(len(source.stages) - 1)
        _, to_y = target.stage_place(0)
        spread = min(44.0, (source.height - 28) / len(leaving))
        y0 = from_y + _STAGE_HEIGHT / 2 + _offset(leaving.index(bridge), len(leaving), spread)
        y1 = to_y + _STAGE_HEIGHT / 2 + _offset(arriving.index(bridge), len(arriving), 12)
        bottom += 14 * passes(bridge)
        way = _way(source.x + source.width, y0, target.x - 4, y1, bottom if passes(bridge) else None)
        parts.append(_bridge(bridge, way, source.x + source.width, y0))
    return parts, bottom


def _offset(index: int, count: int, spread: float) -> float:
    return (index - (count - 1) / 2) * spread


def _way(x0: float, y0: float, x1: float, y1: float, below: float | None) -> str:
    """Straight beside its words, then to the target; where modules are between them, below these."""
    start, bend = x0 + _LABEL_WIDTH, (x1 - x0 - _LABEL_WIDTH) / 2
    begin = f"M {x0:g} {y0:g} H {start:g}"
    if below is None:
        return f"{begin} C {start + bend:g} {y0:g} {x1 - bend:g} {y1:g} {x1:g} {y1:g}"
    down = f"C {start + 30:g} {y0:g} {start + 10:g} {below:g} {start + 40:g} {below:g}"
    return f"{begin} {down} H {x1 - 40:g} C {x1 - 10:g} {below:g} {x1 - 30:g} {y1:g} {x1:g} {y1:g}"


def _bridge(bridge: BridgeLine, way: str, x: float, y: float) -> Element:
    lanes = f"{bridge.lanes[0]} → {bridge.lanes[1]} lanes"
    note = "same ranks" if bridge.is_on_same_ranks else "across pools" if bridge.crosses_pools else None
    words = [label(x + 8, y - 8, lanes, "small"), label(x + 8, y + 17, note, "small quiet") if note else None]
    title = f"bridge {bridge.source} -> {bridge.target}: {bridge.lanes[0]} lanes to {bridge.lanes[1]}"
    return titled(
        f"{title}, {note}" if note else title,
        element("path", {"d": way, "class": "way", "marker-end": "url(#layout-head)"}),
        *words,
    )


def _arrow_head() -> Element:
    shape = {"viewBox": "0 0 8 8", "refX": 6, "refY": 4, "markerWidth": 7, "markerHeight": 7, "orient": "auto"}
    path = element("path", {"d": "M 0 0 L 8 4 L 0 8 z", "class": "head"})
    return element("defs", None, element("marker", {"id": "layout-head", **shape}, path))
