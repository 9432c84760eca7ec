"""Compares what the kinds of a rehearsal have called over the groups that they share in the real job. Pure.

All members of a group have to call the same operations on it, in the same order: where they do not, the real job hangs, or
mixes the data of two operations. A kind is compared in its rank's own groups with the other kinds whose rehearsed rank is in
them; where another member's kind was rehearsed by a rank elsewhere, with that rank's group of the same description and size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from launcher.rehearse.calls import Call, Calls, Ended, Group, KindCalls
from launcher.rehearse.kinds import Kind

_UNNAMED = ("undefined",)
"""torch's description of a group that was created without one."""

Did = tuple[str, str]
"""An operation, and the lines of the script."""
NOTHING = "nothing more"
NO_GROUP = "has no such group"
_NO_CALLS = Calls((), 0, 0)


@dataclass(frozen=True)
class Member:
    """A kind's rank in one group."""

    of: KindCalls
    calls: Calls
    has_group: bool = True


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first call over a group in which its members differ."""

    group: str
    """Its name."""
    size: int
    number: int
    """Of the call over the group, from 1 on; 0: somewhere behind those that were kept."""
    unit: str = "call"
    """What is counted."""
    did: dict[Did, list[Kind]]
    """What the kinds did, the fewest ranks first."""

    def fits(self, other: "Difference") -> bool:
        """Whether no kind would have done two things if both were one."""
        return all(kind not in others for did, kinds in self.did.items() for kind in kinds for others in other.without(did))

    def without(self, did: Did) -> Iterator[list[Kind]]:
        """The kinds that did something else."""
        return (kinds for each, kinds in self.did.items() if each != did)


def differences(kinds: Sequence[KindCalls]) -> list[Difference]:
    """The first differences over each group that kinds share; those over alike groups are one.

    Args:
        kinds: what each has called, in the order of the kinds.
    """
    merged: dict[tuple[object, ...], list[Difference]] = {}
    for found in _all_differences(kinds):
        # Groups that only differ in their ranks, such as those of each lane, have one name.
        signature = (found.group, found.size, found.number, found.unit, *sorted(found.did))
        alike = merged.setdefault(signature, [])
        known = next((each for each in alike if each.fits(found)), None)
        if known is None:
            alike.append(found)
        else:
            for did, others in found.did.items():
                known.did[did] += [kind for kind in others if kind not in known.did[did]]
    return [difference for alike in merged.values() for difference in alike]


def _all_differences(kinds: Sequence[KindCalls]) -> Iterator[Difference]:
    seen = set()
    for own in kinds:
        for group in own.groups:
            members = list(_members(own, group, kinds))
            identity = frozenset(id(member.calls) for member in members)
            if identity not in seen:
                seen.add(identity)
                if (found := _first_difference(group.name, group.size, members)) is not None:
                    yield found
            yield from _of_messages(own, group, kinds)
    for bridge in dict.fromkeys(name for each in kinds for name in each.bridges):
        members = [Member(each, each.bridges[bridge]) for each in kinds if bridge in each.bridges]
        ranks = sum(len(member.of.kind.ranks) for member in members)
        if (found := _first_difference(bridge, ranks, members)) is not None:
            yield replace(found, unit="batch")


def _members(own: KindCalls, group: Group, kinds: Sequence[KindCalls]) -> Iterator[Member]:
    """The kinds in a group, this one first; without those about which nothing is known."""
    yield Member(own, group.calls)
    for other in kinds:
        if other is own:
            continue
        if other.kind.representative in group.members:
            found = _same(group, other)
            yield Member(other, _NO_CALLS, has_group=False) if found is None else Member(other, found.calls)
        elif (alike := _alike(group, own, other)) is not None and not group.members.isdisjoint(other.kind.ranks):
            yield Member(other, alike.calls)


def _of_messages(own: KindCalls, group: Group, kinds: Sequence[KindCalls]) -> Iterator[Difference]:
    """Differences between what this kind's rank sends or receives and what rehearsed ranks at the other ends do."""
    for (source, destination, tag), calls in group.messages.items():
        sends = group.ranks[source] == own.kind.representative
        peer = group.ranks[destination if sends else source]
        other = next((each for each in kinds if each.kind.representative == peer), None)
        found = None if other is None else _same(group, other)
        if other is None or found is None:
            continue
        if (found if sends else group).receives_from_any:
            continue  # and so it is not known whose message a receive is
        theirs = found.messages.get((source, destination, tag))
        if theirs is not None and not sends:
            continue  # compared at the sender
        ends = [Member(own, calls), Member(other, _NO_CALLS if theirs is None else theirs)]
        difference = _first_difference(group.name, group.size, ends)
        if difference is not None and not _is_on_its_way(difference, ends):
            sender = own if sends else other
            yield replace(difference, did=_of_ends(difference.did, sender.kind), unit="message")


def _is_on_its_way(difference: Difference, ends: Sequence[Member]) -> bool:
    """Whether what one end lacks may follow in the next step, since both were ended after the same number of steps."""
    shorter, longer = sorted((end.calls for end in ends), key=lambda calls: len(calls.first))
    last = max((call.step for call in longer.first), default=0)
    more = longer.first[len(shorter.first) :]
    are_ended = all(end.of.ended is Ended.BY_STEPS for end in ends)
    return are_ended and difference.number > len(shorter.first) and last > 0 and all(call.step == last for call in more)


def _of_ends(did: dict[Did, list[Kind]], sender: Kind) -> dict[Did, list[Kind]]:
    found = {}
    for (text, place), kinds in did.items():
        name = "send" if sender in kinds else "recv"
        found[text if text == NOTHING else f"{name}({text})", place] = kinds
    return found


def _same(group: Group, other: KindCalls) -> Group | None:
    """The group itself, on another of its members."""
    return next((theirs for theirs in other.groups if theirs.key == group.key), None)


def _alike(group: Group, own: KindCalls, other: KindCalls) -> Group | None:
    """The group of another kind's rank that is to it what `group` is to this kind's rank."""
    if group.description in _UNNAMED:
        return None
    number = [each.key for each in own.groups if _looks_like(each, group)].index(group.key)
    candidates = [each for each in other.groups if _looks_like(each, group)]
    return candidates[number] if number < len(candidates) else None


def _looks_like(group: Group, other: Group) -> bool:
    return group.description == other.description and group.size == other.size


def _first_difference(name: str, size: int, members: Sequence[Member]) -> Difference | None:
    for number, row in enumerate(zip_longest(*(member.calls.first for member in members)), start=1):
        known = [(member, call) for member, call in zip(members, row, strict=True) if _is_known(member, call, number, members)]
        if len({None if call is None else call.text for _, call in known}) > 1:
            return Difference(group=name, size=size, number=number, did=_did(known))
    whole = [(member, None) for member in members if member.of.ended is Ended.BY_ITSELF and member.calls.is_shortened]
    if len({(member.calls.count, member.calls.checksum) for member, _ in whole}) > 1:
        return Difference(group=name, size=size, number=0, did=_did(whole))
    return None


def _is_known(member: Member, call: Call | None, number: int, members: Sequence[Member]) -> bool:
    """Whether it is known that the member calls this, or nothing more, as the call of this number."""
    if call is not None:
        return True
    if member.calls.is_shortened or member.of.ended is Ended.BY_A_FAILURE:
        return False
    if member.of.ended is Ended.BY_ITSELF:
        return True
    alike = [other.calls for other in members if other.of.ended is Ended.BY_STEPS and len(other.calls.first) >= number]
    return any(not _may_be_later(member.calls, calls) for calls in alike)


def _may_be_later(shorter: Calls, longer: Calls) -> bool:
    """Whether a process that was ended when it began a step may have been about to call what another one has called.

    It may, if that is in the last step of the other one, which calls it before it begins a step and so had called as many more
    before its first step.
    """
    more = longer.first[len(shorter.first) :]
    before = [sum(call.step == 0 for call in calls.first) for calls in (shorter, longer)]
    last = max((call.step for call in longer.first), default=0)
    return last > 0 and len(more) <= before[1] - before[0] and all(call.step == last for call in more)


def _did(calls: Sequence[tuple[Member, Call | None]]) -> dict[Did, list[Kind]]:
    found: dict[Did, list[Kind]] = {}
    for member, call in calls:
        found.setdefault(_what(member, call), []).append(member.of.kind)
    return dict(sorted(found.items(), key=lambda item: sum(len(kind.ranks) for kind in item[1])))


def _what(member: Member, call: Call | None) -> Did:
    if call is not None:
        return call.text, call.place
    if member.calls.is_shortened:
        return f"{member.calls.count:,} calls in all", ""
    return (NOTHING if member.has_group else NO_GROUP), ""
