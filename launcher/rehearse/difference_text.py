"""Differences between kinds as text."""

import re
from collections.abc import Iterator, Sequence
from linecache import getline
from pathlib import Path

from launcher.rehearse.call_comparison import NO_GROUP, NOTHING, Did, Difference
from launcher.rehearse.kinds import Kind, described


def text_of(difference: Difference, kinds: Sequence[Kind]) -> str:
    """Who differs and in which call, then what each kind did, with the line of the script.

    Args:
        difference: the first one over a group.
        kinds: all kinds of the rehearsal.
    """
    lines = [_headline(difference, kinds)]
    for did, members in difference.did.items():
        lines += _lines_of(did, members, kinds)
    lines.append("  members that do not do the same in the same order: the real job would hang, or mix the data of two calls")
    return "\n".join(lines)


def _headline(difference: Difference, kinds: Sequence[Kind]) -> str:
    (what, _), odd = next(iter(difference.did.items()))
    at = f"{difference.unit} {difference.number:,}" if difference.number else "the end"
    where = f"{difference.group} ({difference.size:,} ranks)"
    described = f"does not create {where}" if what == NO_GROUP else f"{_short(what)} as {at} over {where}"
    return f"{_who(odd, kinds)}: {described}, {_of_others(difference, kinds)}"


def _of_others(difference: Difference, kinds: Sequence[Kind]) -> str:
    _, *others = difference.did.items()
    if len(others) > 1:
        return f"{len(others)} other ones on other ranks"
    ((what, _), members), *_ = others
    return f"{_short(what)} on {names_of(members, kinds)}"


def _short(what: str) -> str:
    return "nothing" if what in (NOTHING, NO_GROUP) else what


def names_of(named: Sequence[Kind], kinds: Sequence[Kind]) -> str:
    """The stages of some kinds, and how much of them: `vision and 2 of 3 kinds of language.pp1`.

    Args:
        named: the kinds.
        kinds: all kinds of the rehearsal.
    """
    return " and ".join(_names(named, kinds))


def _names(named: Sequence[Kind], kinds: Sequence[Kind]) -> Iterator[str]:
    for stage in dict.fromkeys(kind.stage for kind in named):
        found = [kind for kind in named if kind.stage == stage]
        count = sum(kind.stage == stage for kind in kinds)
        if len(found) == count:
            yield stage
        elif len(found) == 1:
            yield found[0].name.replace(" (", ", ").rstrip(")")
        else:
            yield f"{len(found)} of {count} kinds of {stage}"


def _who(named: Sequence[Kind], kinds: Sequence[Kind]) -> str:
    return f"{names_of(named, kinds)} ({described(rank for kind in named for rank in kind.ranks)})"


def _lines_of(did: Did, members: Sequence[Kind], kinds: Sequence[Kind]) -> Iterator[str]:
    what, place = did
    yield f"  {_who(members, kinds)}: {what}"
    for match in re.finditer(r"^(.*):(\d+) in (.*)$", place, re.MULTILINE):
        file, line, function = Path(match[1]), int(match[2]), match[3]
        shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        yield f"    {shown}:{line} in {function}"
        if source := getline(str(file), line).strip():
            yield f"      {source}"
