"""Recordings of a rehearsal: of ranks that ran one after another and waited for nobody."""

from dataclasses import replace

from launcher.rehearse.kinds import kinds_of
from mimo_role.monitoring.records import Kind
from tests.launcher.advise.recorded import recordings_of

_WAITS = (Kind.WAIT_ACTIVATIONS, Kind.WAIT_GRADIENTS)
_COMPUTES = (Kind.FORWARD, Kind.BACKWARD)


def rehearsed_recordings_of(topology, costs, shape, *, steps=4, send_s=0.0, wait_s=0.0):
    """What a rank of each kind records that has peers without computation; a wait takes `wait_s`."""
    found = recordings_of(topology, costs, shape, steps=steps, send_s=send_s)
    begin_ns, by_rank = 10**12, {}
    for rank in sorted((kind.representative for kind in kinds_of(topology)), reverse=True):
        rest_s = max(costs.rests[module] for module in topology.modules_of(rank))
        records, begin_ns = _alone(found.by_rank[rank].records, begin_ns, round(rest_s * 1e9), round(wait_s * 1e9))
        by_rank[rank] = replace(found.by_rank[rank], records=records)
    return replace(found, by_rank=by_rank)


def _alone(records, clock_ns, rest_ns, wait_ns):
    """The same records one directly after another; and when the last one ends."""
    placed, step = [], None
    for each in records:
        if step not in (None, each.step):
            clock_ns += rest_ns
        step, length_ns = each.step, each.end_ns - each.begin_ns
        if each.kind in _WAITS:
            length_ns = wait_ns
        if each.kind in _WAITS or each.kind in _COMPUTES:
            clock_ns += length_ns
        placed.append(each._replace(begin_ns=clock_ns - length_ns, end_ns=clock_ns))
    return placed, clock_ns
