"""Scalars that keep the text they were written as.

YAML reads `0042` as 34, `12:00:00` as 43200 and `off` as false, which is wrong for an argument of a script, an environment
variable or a scheduler's option. So what a config holds is the text; the schema decides who reads the value. The text is
part of the value and not looked up by its place in the file, because aliases, merge keys, interpolations and overrides
bring one value to many places.
"""

from datetime import date
from typing import Any


class Scalar(str):
    """An unquoted scalar that YAML does not read as text: `0042`, `1e-4`, `off`, `~`.

    It is a `str` so that OmegaConf, which knows nothing of it, puts its text into longer texts and into keys:
    `--lr=${env.LR}`, `${args[${n}]}`.
    """

    value: bool | int | float | date | None
    """What YAML reads; infinity for a whole number of more digits than Python converts."""

    def __new__(cls, text: str, value: bool | int | float | date | None) -> "Scalar":
        """Make a scalar of its text and of what YAML reads."""
        self = super().__new__(cls, text)
        self.value = value
        return self

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]
        return str(self), self.value

    def __repr__(self) -> str:
        """As it was written: without quotes."""
        return str(self)


def read(value: Any) -> Any:
    """What YAML reads for a value: a number, a truth value or `None` for a `Scalar`, and any other value itself."""
    return value.value if isinstance(value, Scalar) else value


def with_scalars(value: Any) -> Any:
    """The same tree with a `Scalar` for each number, truth value and `None` that OmegaConf made itself."""
    if isinstance(value, dict):
        return {name: with_scalars(item) for name, item in value.items()}
    if isinstance(value, list):
        return [with_scalars(item) for item in value]
    if value is None:
        return Scalar("null", None)
    if isinstance(value, bool):
        return Scalar(str(value).lower(), value)
    return Scalar(str(value), value) if isinstance(value, int | float) else value
