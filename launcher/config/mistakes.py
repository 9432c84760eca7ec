"""What is wrong with the values of a config: keys, problems, and values as they were written."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.config.literals import Scalar
from mimo_role import TopologyError

_LONGEST_SHOWN = 60


class InvalidValueError(Exception):
    """A value that does not fit its type hint; the message names its key."""

    def __init__(self, key: str, problem: str, others: Iterable["InvalidValueError"] = ()) -> None:
        super().__init__(joined(key, problem))
        self.key = key
        self.problem = problem
        self.mistakes = (self, *others)
        """This mistake, and those that do not depend on it."""


def raise_all(mistakes: Iterable[InvalidValueError]) -> None:
    """Raise several mistakes as one exception.

    Raises:
        InvalidValueError: there are any.
    """
    found = [each for mistake in mistakes for each in mistake.mistakes]
    if found:
        raise InvalidValueError(found[0].key, found[0].problem, found[1:])


@dataclass(frozen=True)
class Bound:
    """The smallest number that a field may have: `field(metadata=Bound(1, "is less than 1").metadata)`."""

    least: float
    problem: str
    """What is wrong with a smaller one."""
    exclusive: bool = False
    """Whether the smallest number is too small itself."""

    @property
    def metadata(self) -> dict[str, "Bound"]:
        """The bound as a field's metadata."""
        return {"bound": self}

    def check(self, number: float, key: str, written: Any) -> None:
        """Check a number that was read from what was written.

        Raises:
            InvalidValueError: it is too small.
        """
        if number < self.least or (self.exclusive and number == self.least):
            raise InvalidValueError(key, f"={shown(written)} {self.problem}")


def joined(key: str, problem: str) -> str:
    """A key and what is wrong with it: `modules.vision.tp: missing`, `modules.vision.tp=x is not a number`."""
    if not key:
        return problem.removeprefix("=")
    return f"{key}{problem}" if problem.startswith("=") else f"{key}: {problem}"


def wrong(key: str, value: Any, allowed: str, hint: str = "") -> InvalidValueError:
    """The mistake of a value that is not what is allowed."""
    hint = f"; {hint}" if hint else ""
    if isinstance(value, Scalar) and not value:
        return InvalidValueError(key, f"has no value; it is {allowed}{hint}")
    return InvalidValueError(key, f"={shown(value)} is not {allowed}{hint}")


def shown(value: Any) -> str:
    """A value as it was written; of a long one the beginning."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def problem_of(error: TopologyError, tree: Any) -> str:
    """What is wrong by a `TopologyError`, with a number as it was written in the tree that the error's key is a path in."""
    for name in error.key.split("."):
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    problem = str(error).removeprefix(error.key).removeprefix(": ")
    return re.sub(r"^=\S+", lambda _: f"={shown(tree)}", problem) if isinstance(tree, Scalar) else problem
