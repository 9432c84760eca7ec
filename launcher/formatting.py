"""Ranks, counts and lists as they are written in messages."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mimo_role import Topology  # for `--help`, which needs no more than this module, it takes half of the time

LONGEST_SHOWN = 200
"""Characters of one piece of user input that a message repeats."""

_NAMED_RANKS = 3
_LONGEST_RANGE = 100_000
_LISTED = 8


def describe_ranks(topology: "Topology", ranks: Iterable[int]) -> str:
    """`rank 5 (language.pp1.tp0)`; of many: `6 of language.pp1 (ranks 8-13), 2 of vision (ranks 0, 2)`."""
    found = sorted(ranks)
    if len(found) <= _NAMED_RANKS:
        return ", ".join(f"rank {rank} ({topology.label_of(rank)})" for rank in found)
    by_stage: dict[str, list[int]] = {}
    for rank in found:
        by_stage.setdefault(stage_of(topology, rank), []).append(rank)
    return ", ".join(f"{len(members)} of {stage} (ranks {ranges(members)})" for stage, members in by_stage.items())


def stage_of(topology: "Topology", rank: int) -> str:
    """A rank's modules, each with its stage where it has several: `language.pp1`."""
    return "+".join(
        f"{name}.pp{coords['pp']}" if topology.grids[name].axis_size("pp") > 1 else name
        for name, coords in topology.coords_of(rank).items()
    )


def prefix_of(topology: "Topology", ranks: Sequence[int]) -> str:
    """The prefix of a line of output: `[language.pp1.tp0 r5]`; of several ranks: `[language.pp1 r4-5]`."""
    if len(ranks) == 1:
        return f"[{topology.label_of(ranks[0])} r{ranks[0]}]"
    stages = list(dict.fromkeys(stage_of(topology, rank) for rank in sorted(ranks)))
    return f"[{' '.join(stages)} r{ranges(ranks).replace(' ', '')}]"


def ranges(ranks: Iterable[int]) -> str:
    """`0-3, 7`."""
    return ", ".join(runs_of(ranks))


def runs_of(ranks: Iterable[int]) -> list[str]:
    """The runs of consecutive ranks: `0-3` and `7`."""
    runs: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], rank)
        else:
            runs.append((rank, rank))
    return [f"{first}-{last}" if last > first else str(first) for first, last in runs]


def parse_ranges(text: str) -> tuple[int, ...]:
    """The inverse of `ranges`; at most 100,000 of each range.

    Raises:
        ValueError: not of this form.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip(), re.ASCII)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(text)
        found += range(int(match[1]), min(int(match[2] or match[1]), int(match[1]) + _LONGEST_RANGE) + 1)
    return tuple(found)


def listed(names: Sequence[str], limit: int = _LISTED) -> str:
    """`node0, node1`; of more than `limit`: `node0, node1 and 3 more`."""
    shown = ", ".join(names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def counted(number: int, thing: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def bytes_shown(size: int) -> str:
    """`512 bytes`, `3.2 GiB`."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return counted(size, "byte")


def printable(text: str) -> str:
    """The text on one line, without characters that a terminal would act upon."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a message."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def closest(word: object, known: Iterable[str]) -> str | None:
    """The known name that a word is probably a misspelling of."""
    import difflib  # late, for the sake of --help

    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """`did you mean 'tp'?`; empty if no known name is close to the word."""
    name = closest(word, known)
    return f"did you mean {name!r}?" if name is not None else ""
