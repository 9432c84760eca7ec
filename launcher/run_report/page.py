"""A run as one HTML file: it loads nothing, and runs no other script and style than its own."""

import base64
import hashlib
from importlib.resources import files
from pathlib import Path
from xml.etree.ElementTree import Element

from launcher.errors import LaunchError
from launcher.run_report import sections
from launcher.run_report.layout_svg import STYLE
from launcher.run_report.markup import as_html, element
from launcher.run_report.run_record import RunRecord
from mimo_role.host.files import write_whole


def report_page(record: RunRecord) -> str:
    """The page of a run, as the text of an HTML file."""
    style, script = _asset("page.css") + STYLE, _asset("page.js")
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": _policy(style, script)}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, f"{record.plan.name}: {(record.report or {}).get('outcome') or 'run'}"),
        element("style", None, style),
    )
    parts = _parts(record)
    main = element("main", {"id": "main"}, *parts)
    body = element("body", None, sections.heading(record), _contents(parts), main, element("script", None, script))
    return as_html(element("html", {"lang": "en"}, head, body))


def write_page(record: RunRecord, path: Path) -> Path:
    """Write the page of a run to a file, and return its path.

    Raises:
        LaunchError: the file cannot be written.
    """
    try:
        write_whole(path, report_page(record))
    except OSError as error:
        raise LaunchError(f"{path}: {error.strerror}; choose another file with --out FILE") from None
    return path


def _parts(record: RunRecord) -> list[Element]:
    found = [
        sections.failure_section(record),
        sections.restarts_section(record),
        sections.layout_section(record.plan),
        sections.shares_section(record),
        sections.curves_section(record),
        sections.timeline_section(record),
        sections.stragglers_section(record),
        sections.nodes_section(record),
    ]
    return [each for each in found if each is not None]


def _contents(parts: list[Element]) -> Element:
    links = [element("li", None, element("a", {"href": f"#{part.get('id')}"}, _title(part))) for part in parts]
    return element("nav", {"aria-label": "sections"}, element("ul", None, *links))


def _title(part: Element) -> str:
    found = part.find("summary/h2")
    return (found.text or "") if found is not None else ""


def _policy(style: str, script: str) -> str:
    """A policy under which nothing is loaded, and only this style and this script are used (W3C, CSP 3)."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _asset(name: str) -> str:
    return files("launcher.run_report").joinpath(name).read_text(encoding="utf-8")
