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
    (what, _), odd = next(iter(difference.did.items()))
    lines = [f"{_who(odd, kinds)}: {_headline(what, difference)}"]
    for did, members in difference.did.items():
        lines += _lines_of(did, members, kinds)
    lines.append("  members that do not do the same in the same order: the real job would hang, or mix the data of two calls")
    return "\n".join(lines)


def _headline(what: str, difference: Difference) -> str:
    at = f"{difference.unit} {difference.number:,}"
    where = f"{difference.group} ({difference.size:,} ranks)"
    if what == NO_GROUP:
        return f"does not create {where}, which other ranks use"
    if what == NOTHING:
        return f"no {at} over {where}, which other ranks have"
    if not difference.number:
        return f"{what} over {where}, and other ones on other ranks"
    return f"{what} is {at} over {where}, but not on other ranks"


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
