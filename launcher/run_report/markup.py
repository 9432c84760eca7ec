"""Elements of HTML and SVG as trees of `xml.etree`, which escapes all text and attributes when they are written."""

import json
import re
from collections.abc import Mapping
from typing import TypeAlias
from xml.etree.ElementTree import Element, tostring

Child: TypeAlias = "Element | str | None"

_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 excludes, section 2.2: most control characters, surrogates."""


def element(name: str, attributes: Mapping[str, object] | None = None, *children: Child) -> Element:
    """An element with children, in their order; strings are text, and `None` is left out, as an attribute too."""
    values = {key: written(value) for key, value in (attributes or {}).items() if value is not None}
    made = Element(name, values)
    last: Element | None = None
    for child in children:
        if isinstance(child, str):
            if last is None:
                made.text = (made.text or "") + written(child)
            else:
                last.tail = (last.tail or "") + written(child)
        elif child is not None:
            made.append(child)
            last = child
    return made


def written(value: object) -> str:
    """An attribute or a text: numbers with at most two decimals, and no character that XML excludes."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return _NOT_IN_XML.sub(lambda found: repr(found[0])[1:-1], str(value))


def as_xml(root: Element) -> str:
    """The text of an SVG file."""
    return tostring(root, encoding="unicode") + "\n"


def as_html(root: Element) -> str:
    """The text of an HTML document."""
    return "<!DOCTYPE html>\n" + tostring(root, encoding="unicode", method="html") + "\n"


def elided(text: str, limit: int) -> str:
    """The text, or its beginning with an ellipsis if it is longer than `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def data_block(kind: str, value: object) -> Element:
    """A value as JSON inside the page, for its script; `kind` is the class. Browsers do not run it."""
    # In HTML the text of a script is not escaped: without `<` it cannot end early.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return element("script", {"type": "application/json", "class": kind}, text)
