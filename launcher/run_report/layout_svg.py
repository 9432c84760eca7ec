"""The layout of a plan as SVG: which module feeds which, with their stages, and which node runs what."""

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element

from launcher.formatting import counted
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_report.layout import Layout, layout_of
from launcher.run_report.markup import as_xml, element
from launcher.run_report.module_svg import draw_modules
from launcher.run_report.node_svg import draw_pools, pools_width
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY

_LEAST_WIDTH = 640
_TEXT = 'font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
_LIGHT = ("#e4edfb #3f6fb5", "#fdf1dc #c98a1b", "#e2f4e6 #2f8a4b", "#f1e6fa #8450b5", "#fbe5ea #b9486a", "#def3f3 #23858a")
_DARK = ("#1d2f4b #6d9be0", "#3d301a #d9a441", "#17351f #5fbf7c", "#33214a #b48be0", "#43202b #e0809c", "#113536 #59bdc2")


def _rules(colors: Sequence[str]) -> str:
    pairs = [color.split() for color in colors]
    fills = [f".m{at} {{ fill: {fill}; stroke: {line} }}" for at, (fill, line) in enumerate(pairs)]
    lines = [
        f".l{at} {{ stroke: {line}; color: {line} }}\n.band.l{at} {{ fill: {line}; stroke: none }}\n"
        f".s{at} {{ background: {line} }}"
        for at, (_, line) in enumerate(pairs)
    ]
    return "\n".join([*fills, *lines])


STYLE = f"""
.layout text {{ {_TEXT}; fill: #1f2733 }}
.layout .strong {{ font-weight: 600 }}
.layout .small {{ font-size: 12px }}
.layout .quiet {{ fill: #5a6474 }}
.layout .card {{ fill: #ffffff; stroke: #c3c9d4 }}
.layout .pool {{ fill: #f7f8fa; stroke: #d5d9e0 }}
.layout .way {{ fill: none; stroke: #5a6474; stroke-width: 1.5 }}
.layout .head {{ fill: #5a6474 }}
{_rules(_LIGHT)}
@media (prefers-color-scheme: dark) {{
.layout text {{ fill: #e6eaf0 }}
.layout .quiet {{ fill: #9aa5b4 }}
.layout .card {{ fill: #1f2630; stroke: #3d4653 }}
.layout .pool {{ fill: #161b22; stroke: #30363d }}
.layout .way {{ stroke: #9aa5b4 }}
.layout .head {{ fill: #9aa5b4 }}
{_rules(_DARK)}
}}
"""
_FILE_STYLE = """
.page { fill: #ffffff }
@media (prefers-color-scheme: dark) { .page { fill: #0d1117 } }
"""


def color_numbers(modules: Iterable[str]) -> dict[str, int]:
    """The color of each module: 0 for the language module, the others in their order."""
    others = [name for name in modules if name != MIMO_LANGUAGE_MODULE_KEY]
    return {MIMO_LANGUAGE_MODULE_KEY: 0} | {name: 1 + at % (len(_LIGHT) - 1) for at, name in enumerate(others)}


def layout_svg(plan: LaunchPlan) -> str:
    """The picture as the text of an SVG file. Its colors follow the reader's light or dark setting."""
    drawn = draw_layout(layout_of(plan))
    drawn.set("xmlns", "http://www.w3.org/2000/svg")
    ground = element("rect", {"width": "100%", "height": "100%", "class": "page"})
    drawn[1:1] = [element("style", None, STYLE + _FILE_STYLE), ground]
    return as_xml(drawn)


def draw_layout(layout: Layout) -> Element:
    """The picture as an `svg` element, without its style, which is `STYLE`."""
    color_of = color_numbers(each.name for each in layout.modules).__getitem__
    modules = draw_modules(layout, color_of)
    width = max(modules.width, pools_width(layout), _LEAST_WIDTH)
    pools = draw_pools(layout, color_of, top=modules.height, width=width)
    title = f"{layout.name}: {counted(layout.world_size, 'rank')}, {layout.kind}"
    return element(
        "svg",
        {
            "viewBox": f"0 0 {width:g} {pools.height:g}",
            "width": width,
            "height": pools.height,
            "role": "img",
            "class": "layout",
        },
        element("title", None, title),
        *modules.parts,
        *pools.parts,
    )
