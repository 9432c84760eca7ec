"""Which ranks wait for messages of which others, from the traces of all ranks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.formatting import describe_ranks
from launcher.hangs.probe import RankSnapshot
from mimo_role import Topology
from mimo_role.monitoring.flight_recorder import GroupTrace, MessageTrace

_SHOWN = 6


@dataclass(frozen=True, kw_only=True)
class MessageWait:
    """A rank with a pending send to another, or a pending receive from it."""

    group: str
    """The name of the group."""
    rank: int
    peer: int
    is_send: bool
    is_missing: bool
    """Whether the peer has not posted its side: the receive of this send, or the send of this receive."""
    timeout_s: float = 0.0
    """The timeout of the message; 0 if it is not known."""


def message_waits(topology: Topology, snapshots: Sequence[RankSnapshot]) -> list[MessageWait]:
    """The pending messages of all ranks; those that the peer has not posted first."""
    by_group: dict[str, dict[int, GroupTrace]] = {}
    for snapshot in snapshots:
        for trace in snapshot.traces or ():
            by_group.setdefault(trace.name, {})[snapshot.rank] = trace
    found = [wait for traces in by_group.values() for wait in _waits_of_group(topology, traces)]
    return sorted(found, key=lambda wait: (not wait.is_missing, wait.is_send, wait.peer, wait.rank))


def describe_messages(topology: Topology, waits: Sequence[MessageWait]) -> list[str]:
    """A line for each peer that ranks wait for."""
    found: dict[tuple[bool, int, bool], list[int]] = {}
    for wait in waits:
        found.setdefault((wait.is_send, wait.peer, wait.is_missing), []).append(wait.rank)
    lines = [_line_of(topology, ranks, *key) for key, ranks in found.items()]
    return lines[:_SHOWN] + ([f"and {len(lines) - _SHOWN} more ranks that others wait for"] if len(lines) > _SHOWN else [])


def _line_of(topology: Topology, ranks: Sequence[int], is_send: bool, peer: int, is_missing: bool) -> str:
    who, other = describe_ranks(topology, set(ranks)), describe_ranks(topology, [peer])
    if is_send:
        return f"sending a message: {who} to {other}" + (", which does not receive it" if is_missing else "")
    return f"waiting for a message: {who} from {other}" + (", which has not sent it" if is_missing else "")


def _waits_of_group(topology: Topology, traces: dict[int, GroupTrace]) -> Iterator[MessageWait]:
    is_world = any(trace.description == "default_pg" for trace in traces.values())
    known = next((trace.ranks for trace in traces.values() if trace.ranks), ())
    members = tuple(range(topology.world_size)) if is_world else known
    for rank, trace in traces.items():
        for message in trace.messages:
            if message.pending and message.peer < len(members):
                peer = members[message.peer]
                yield MessageWait(
                    group="the world" if is_world else trace.description or trace.name,
                    rank=rank,
                    peer=peer,
                    is_send=message.is_send,
                    is_missing=not _is_posted(message, traces.get(peer)),
                    timeout_s=trace.timeout_s,
                )


def _is_posted(message: MessageTrace, peer: GroupTrace | None) -> bool:
    """Whether the peer has posted the other side of the first pending message."""
    other = next((each for each in peer.messages if _are_counterparts(each, message)), None) if peer is not None else None
    if other is None:
        return False
    if message.has_all and other.has_all:
        return other.posted > message.posted - message.pending
    # The recorders have forgotten how many there were: of a pending message, both sides are pending.
    return other.pending > 0


def _are_counterparts(one: MessageTrace, other: MessageTrace) -> bool:
    return (one.own, one.peer, one.is_send) == (other.peer, other.own, not other.is_send)
