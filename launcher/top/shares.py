"""Where the time of a module's steps goes: a bar of five parts, each with a color and a character of its own."""

from dataclasses import dataclass

from rich.text import Text

from launcher.live.view import ModuleView


@dataclass(frozen=True)
class Part:
    """One part of a step."""

    name: str
    glyph: str
    ascii_glyph: str
    style: str

    def of(self, module: ModuleView) -> float | None:
        """Its share of a step; `None` where the script has no schedule."""
        if module.compute is None:
            return None
        known = (module.compute, module.collectives, module.bridge_wait, module.bubble)
        values = [max(0.0, value or 0.0) for value in known]
        return (*values, max(0.0, 1.0 - sum(values)))[PARTS.index(self)]

    def mark(self, *, ascii_only: bool) -> str:
        """The character that the bar is made of."""
        return self.ascii_glyph if ascii_only else self.glyph


PARTS = (
    Part("compute", "█", "#", "green"),
    Part("collectives", "▓", "=", "cyan"),
    Part("bridge", "▒", "+", "yellow"),
    Part("bubble", "░", "-", "magenta"),
    Part("other", "·", ".", "dim"),
)


def bar(module: ModuleView, width: int, *, ascii_only: bool) -> Text:
    """A bar of so many columns; empty where the script has no schedule."""
    text = Text()
    for part, columns in zip(PARTS, columns_of([part.of(module) or 0.0 for part in PARTS], width), strict=True):
        text.append(part.mark(ascii_only=ascii_only) * columns, part.style)
    return text


def columns_of(shares: list[float], width: int) -> list[int]:
    """Whole columns in proportion to shares: their sum is the width, and none is a column or more away from its share.

    By largest remainders (Hamilton's method). All are 0 where all shares are.
    """
    total = sum(shares)
    if not total:
        return [0] * len(shares)
    exact = [width * share / total for share in shares]
    columns = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: columns[index] - exact[index])
    for index in by_remainder[: width - sum(columns)]:
        columns[index] += 1
    return columns
