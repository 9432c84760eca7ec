"""From the records of one rank to its steps, as they are read. Pure."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from launcher.steps.intervals import Interval, overlap, union
from launcher.steps.rank_step import ModuleTimes, RankStep
from launcher.steps.span_names import SpanNames
from mimo_role.monitoring.records import Flag, Kind, Record
from mimo_role.monitoring.ring import OTHER_NAMES
from mimo_role.monitoring.ring_reader import NewRecords

_COMPUTES = (Kind.FORWARD, Kind.BACKWARD)
_WAITS = (Kind.WAIT_ACTIVATIONS, Kind.WAIT_GRADIENTS)
_PAUSES = (Kind.SEND_ACTIVATIONS, Kind.SEND_GRADIENTS, Kind.WAIT_SENT)


@dataclass
class _Spans:
    """What happened in a step, by the clock of the host or of the device."""

    computes: list[tuple[int, int, str]] = field(default_factory=list)
    """Forwards and backwards: begin, end, and the stage."""
    pauses: list[Interval] = field(default_factory=list)
    """Sends, and waits for receivers, which may be within forwards and backwards."""
    waits: list[tuple[str, bool, int]] = field(default_factory=list)
    """Waits: the module that waits, whether for another stage of its own, and ns."""


@dataclass
class _OpenStep:
    """A step that has begun."""

    number: int
    begin_ns: int
    last_step: int
    end_ns: int = 0
    """0 until the next one begins."""
    last_span_ns: int = 0
    """The end of its last span; 0 before the first."""
    host: _Spans = field(default_factory=_Spans)
    device: _Spans = field(default_factory=_Spans)
    collectives: list[Interval] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)


class StepTimes:
    """Turns the records of one rank into its steps.

    Times are the device's where it has any for forwards or backwards, otherwise the host's. Those of a device are recorded
    late: a step of such a rank is finished when the one after the next begins.

    Within a forward or backward, nothing counts as computation that is also in a send, a wait or a collective. A wait for
    receivers counts as one for other stages if the module has several, since its record does not name the receiver.
    """

    def __init__(self, rank: int, names: SpanNames) -> None:
        self._rank = rank
        self._names = names
        self._step: _OpenStep | None = None
        """The one that the rank is in; `None` before the first, and where records of it are missing."""
        self._last: _OpenStep | None = None
        """The one before, as long as records of it may come."""
        self._has_device = False
        self._wall_offset_ns = 0
        self.has_records = False
        """Whether the rank has recorded anything."""

    def add(self, new: NewRecords) -> list[RankStep]:
        """The steps that the rank has ended, by what it has recorded since the last call."""
        self._wall_offset_ns = new.wall_offset_ns
        if new.overwritten:
            self._step = self._last = None
        if new.records:
            self.has_records = True
        found: list[RankStep] = []
        for record in new.records:
            kind = record.kind
            if kind == Kind.ARRIVAL:
                continue
            if kind == Kind.STEP:
                found += self._begin(record)
            elif (step := self._step_of(record)) is not None:
                self._take(step, record, new.names[record.name])
        return found

    def finish(self, *, is_clean: bool) -> list[RankStep]:
        """The steps that are left once the rank has ended.

        The one that it was in is left out if the rank has not ended well, and if it has neither spans nor scalars. It ends with
        its last span; without one, its duration is not known.
        """
        late, last = self._last, self._step
        self._last = self._step = None
        found = [self._finished(late)] if late is not None else []
        if last is not None and is_clean and (last.last_span_ns or last.scalars):
            last.end_ns = last.last_span_ns or last.begin_ns
            found.append(self._finished(last))
        return found

    def _begin(self, record: Record) -> Iterable[RankStep]:
        ended, late = self._step, self._last
        self._step, self._last = _OpenStep(record.step, record.begin_ns, int(record.value)), None
        if ended is not None:
            ended.end_ns = record.begin_ns
            if self._has_device:
                self._last = ended
                ended = None
        return [self._finished(each) for each in (late, ended) if each is not None]

    def _step_of(self, record: Record) -> _OpenStep | None:
        if self._step is not None and record.step == self._step.number:
            return self._step
        return self._last if self._last is not None and record.step == self._last.number else None

    def _take(self, step: _OpenStep, record: Record, name: str) -> None:
        kind = record.kind
        if kind == Kind.SCALAR:
            _take_scalar(step.scalars, name, record.value)
            return
        step.last_span_ns = max(step.last_span_ns, record.end_ns)
        if kind == Kind.COLLECTIVE:
            step.collectives.append((record.begin_ns, record.end_ns))
            return
        spans = step.host
        if record.flags & Flag.DEVICE:
            spans, self._has_device = step.device, True
        if kind in _COMPUTES:
            spans.computes.append((record.begin_ns, record.end_ns, name))
        elif kind in _WAITS:
            link = self._names.links.get(name)
            if link is not None:
                module = link.target if kind == Kind.WAIT_ACTIVATIONS else link.source
                spans.waits.append((module, link.is_within_module, record.end_ns - record.begin_ns))
        elif kind in _PAUSES:
            spans.pauses.append((record.begin_ns, record.end_ns))
            module = self._names.modules.get(name, "") if kind == Kind.WAIT_SENT else ""
            if module:
                spans.waits.append((module, module in self._names.pipelines, record.end_ns - record.begin_ns))

    def _finished(self, step: _OpenStep) -> RankStep:
        return RankStep(
            rank=self._rank,
            step=step.number,
            ended=(step.end_ns + self._wall_offset_ns) / 1e9,
            seconds=(step.end_ns - step.begin_ns) / 1e9,
            last_step=step.last_step,
            modules=_module_times(step.device if step.device.computes else step.host, step.collectives, self._names),
            scalars=step.scalars,
        )


def _take_scalar(scalars: dict[str, float], name: str, value: float) -> None:
    """A later value replaces an earlier one. What has a name that the ring has no room for may be anything."""
    if name == OTHER_NAMES:
        return
    if math.isfinite(value):
        scalars[name] = value
    else:
        scalars.pop(name, None)


def _module_times(spans: _Spans, collectives: list[Interval], names: SpanNames) -> dict[str, ModuleTimes]:
    """By module: ns of computation, collectives, waits for other modules and for its own stages."""
    found: dict[str, list[int]] = {}
    together = union(collectives) if collectives else []
    pauses = union([*spans.pauses, *together])
    for begin, end, stage in spans.computes:
        module = names.modules.get(stage)
        if module is None:
            continue
        times = found.setdefault(module, [0, 0, 0, 0])
        times[0] += end - begin - (overlap(begin, end, pauses) if pauses else 0)
        if together:
            times[1] += overlap(begin, end, together)
    for module, is_within_module, ns in spans.waits:
        found.setdefault(module, [0, 0, 0, 0])[3 if is_within_module else 2] += ns
    return {module: ModuleTimes(*(ns / 1e9 for ns in times)) for module, times in found.items()}
