"""The values of the options of `mimo-launch advise`."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from launcher.advise.advice import Request
from launcher.advise.cost_model import Assumptions
from launcher.errors import LaunchError

T = TypeVar("T")


def request_from(
    *, top: int, samples: int | None, pp: Sequence[str], layers: Sequence[str], tp_efficiency: Sequence[str]
) -> Request:
    """What the user asks for, as the command line has it.

    Raises:
        LaunchError: a value that is not of the option's form.
    """
    for option, number in (("--top", top), ("--samples", samples)):
        if number is not None and number < 1:
            raise LaunchError(f"{option} {number}: give 1 or more")
    assumptions = Assumptions(
        samples=samples,
        layers=_by_module("--layers", layers, _number, "vision=24"),
        tp_efficiency=_by_module("--tp-efficiency", tp_efficiency, _efficiency, "language=0.85, above 0 and at most 1"),
    )
    return Request(top=top, pp=_by_module("--pp", pp, _numbers, "language=1,2,4"), assumptions=assumptions)


def _by_module(option: str, words: Sequence[str], value_of: Callable[[str], T], example: str) -> dict[str, T]:
    found: dict[str, T] = {}
    for word in words:
        module, _, text = word.partition("=")
        try:
            found[module] = value_of(text)
        except ValueError:
            raise LaunchError(f"{option} {word}: give a module and a value, such as {example}") from None
    return found


def _number(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,8}", text, re.ASCII):
        raise ValueError(text)
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted({_number(part) for part in text.split(",")}))


def _efficiency(text: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII) or not 0 < float(text) <= 1:
        raise ValueError(text)
    return float(text)
