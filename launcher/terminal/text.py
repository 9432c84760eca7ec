"""The text of a rank's line, for a terminal that other ranks write to as well."""

import re

_CODES = re.compile(
    r"\x1b\[[0-?]*[ -/]*(?!m)[@-~]"  # moves the cursor, erases, sets a mode; m: colors, which are kept
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles, links and the like
    r"|\x1b(?!\[)[ -/]*[0-~]"
    r"|\x1b(?!\[[0-?]*[ -/]*m)"
    r"|[\x00-\x06\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)
"""What would change the lines of others, or how they are shown."""


def text_of(line: bytes, errors: str = "replace") -> str:
    """The line without the codes that would change other lines; `errors`: what happens to bytes that are not UTF-8."""
    text = line.decode(errors=errors)
    if text.isprintable():
        return text
    return _CODES.sub("", _without_erased(text) if "\b" in text else text)


def _without_erased(text: str) -> str:
    """Characters are overwritten after a backspace, as by spinners and counters."""
    kept: list[str] = []
    for character in text.rstrip("\b"):
        if character != "\b":
            kept.append(character)
        elif kept:
            kept.pop()
    return "".join(kept)
