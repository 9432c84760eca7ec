"""Parts of a picture, and the room that they take."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from launcher.run_report.markup import Child, element, elided

MARGIN = 16
"""Pixels around a picture."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Elements of SVG. Width and height reach from 0 to their end, in pixels, with the margin."""

    parts: Sequence[Element]
    width: float
    height: float


def box(x: float, y: float, width: float, height: float, kind: str, radius: int = 6) -> Element:
    """A rectangle; `kind` is its class."""
    return element("rect", {"x": x, "y": y, "width": width, "height": height, "rx": radius, "class": kind})


def label(x: float, y: float, words: str, kind: str = "", anchor: str | None = None, limit: int = 80) -> Element:
    """A line of text, shortened to `limit` characters; the whole of it is its title then."""
    shown = elided(words, limit)
    whole = element("title", None, words) if shown != words else None
    return element("text", {"x": x, "y": y, "class": kind or None, "text-anchor": anchor}, shown, whole)


def titled(title: str, *children: Child) -> Element:
    """Elements with a title, which is their tooltip and what a screen reader reads."""
    return element("g", None, element("title", None, title), *children)
