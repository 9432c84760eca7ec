"""What one rank did in one recorded step: its runs, what it sent in them, and the gaps between them. Pure."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from launcher.advise.recorded_steps import COMPUTES, SENDS, WAITS, Span
from mimo_role.monitoring.records import Kind
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.stage_links import StageId

SECONDS = 1e-9
"""Per ns."""
LINK = re.compile(r"(?P<source>.+) stage (?P<of_source>\d+) -> (?P<target>.+) stage (?P<of_target>\d+)")
"""The name of a link between stages."""


class Run(NamedTuple):
    """One forward or backward of one stage."""

    phase: Phase
    at: StageId
    micro_batch: int
    micro_batches: int
    compute_s: float
    """Without what it sends."""
    send_s: float
    """Handing over what it sends."""


class Message(NamedTuple):
    """What one rank sends to a stage in one micro-batch."""

    link: str
    phase: Phase
    micro_batch: int
    sender: int


class Wait(NamedTuple):
    """The wait for one tensor of all senders."""

    link: str
    phase: Phase
    micro_batch: int
    senders: tuple[int, ...]
    begin_ns: int
    end_ns: int


class RankStep(NamedTuple):
    """One rank in one step."""

    runs: Sequence[Run]
    sent_ns: Mapping[Message, int]
    """When each message was handed over."""
    waits: Sequence[Wait]
    begin_ns: int
    end_ns: int
    gap_s: float
    """The time between spans."""


def rank_step(rank: int, spans: Sequence[Span]) -> RankStep:
    """Take one rank's spans of a step apart.

    Args:
        rank: whose they are.
        spans: those that begin first first, and of these the longest.
    """
    outer: list[Span] = []
    nested: defaultdict[int, list[Span]] = defaultdict(list)
    """By the index of the span that they are in."""
    for span in spans:
        if span.kind is Kind.ARRIVAL:
            continue
        if outer and span.begin_ns < outer[-1].end_ns:
            nested[len(outer) - 1].append(span)
        else:
            outer.append(span)
    runs = [_run(span, nested[index]) for index, span in enumerate(outer) if span.kind in COMPUTES]
    sent = {Message(span.name, _phase(span.kind), span.micro_batch, rank): span.end_ns for span in spans if span.kind in SENDS}
    gap_ns = sum(later.begin_ns - earlier.end_ns for earlier, later in pairwise(outer))
    return RankStep(runs, sent, _waits(spans), outer[0].begin_ns, outer[-1].end_ns, gap_ns * SECONDS)


def _run(span: Span, nested: Sequence[Span]) -> Run:
    module, _, stage = span.name.rpartition(".")
    sends = _covered([each for each in nested if each.kind in SENDS])
    waits = _covered([each for each in nested if each.kind is Kind.WAIT_SENT])
    compute_ns = span.end_ns - span.begin_ns - sends - waits
    phase = Phase.FORWARD if span.kind is Kind.FORWARD else Phase.BACKWARD
    at = StageId(module, int(stage))
    return Run(phase, at, span.micro_batch, span.micro_batches, compute_ns * SECONDS, sends * SECONDS)


def _covered(spans: Sequence[Span]) -> int:
    """The time that spans cover together, in ns; they may be within each other."""
    covered, end = 0, 0
    for span in spans:
        covered += max(span.end_ns - max(span.begin_ns, end), 0)
        end = max(end, span.end_ns)
    return covered


def _phase(kind: Kind) -> Phase:
    return Phase.FORWARD if kind in (Kind.SEND_ACTIVATIONS, Kind.WAIT_ACTIVATIONS) else Phase.BACKWARD


def _waits(spans: Sequence[Span]) -> list[Wait]:
    """The waits, each with the senders whose arrival was recorded beside it.

    An arrival follows its wait. It has the host's times: where the wait has a device's, the arrival may come first.
    """
    found: list[Wait] = []
    last: dict[tuple[str, int], int] = {}
    early: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for span in spans:
        of_link = span.name, span.micro_batch
        if span.kind in WAITS:
            senders = (span.peer, *early.pop(of_link, ()))
            last[of_link] = len(found)
            found.append(Wait(span.name, _phase(span.kind), span.micro_batch, senders, span.begin_ns, span.end_ns))
        elif span.kind is Kind.ARRIVAL and of_link in last:
            wait = found[last[of_link]]
            found[last[of_link]] = wait._replace(senders=(*wait.senders, span.peer))
        elif span.kind is Kind.ARRIVAL:
            early[of_link].append(span.peer)
    return found
