"""Numbers that keep the text they were written as.

YAML reads `0042` as 34 and `1.50` as 1.5, which is wrong for an argument of a script or an environment variable.
"""

from typing import Any


class WrittenInt(int):
    """A whole number of a config."""

    source: str


class WrittenFloat(float):
    """Any other number of a config."""

    source: str


def with_source(value: Any, source: Any) -> Any:
    """The same tree with `WrittenInt` and `WrittenFloat` in place of its numbers.

    Args:
        value: plain values.
        source: the same tree with every scalar as the text it was written as, as far as that is known.
    """
    if isinstance(value, dict):
        below = source if isinstance(source, dict) else {}
        return {name: with_source(item, below.get(str(name))) for name, item in value.items()}
    if isinstance(value, list):
        texts = source if isinstance(source, list) and len(source) == len(value) else [None] * len(value)
        return [with_source(item, text) for item, text in zip(value, texts, strict=True)]
    if type(value) in (int, float):
        number: WrittenInt | WrittenFloat = WrittenInt(value) if isinstance(value, int) else WrittenFloat(value)
        # The text of an interpolation is not that of its value.
        number.source = source if isinstance(source, str) and "${" not in source else str(value)
        return number
    return value


def text_of(value: str | int | float) -> str:
    """A scalar as text: a number as it was written, if that is known."""
    return value.source if isinstance(value, WrittenInt | WrittenFloat) else str(value)
