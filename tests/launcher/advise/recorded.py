"""Recordings of steps that took known times, as ranks would have made them."""

from launcher.advise.simulator import Program, play
from launcher.coordination.clock_offset import ClockOffset
from launcher.trace.recordings import Recordings
from mimo_role.monitoring.records import Kind, Record, Recording
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.stage_links import StageLink


def recordings_of(topology, costs, shape, *, steps=6, send_s=0.0):
    """What the ranks of a world record of steps that take these costs, of which `send_s` is for what an action sends."""
    graph = StageGraph(topology)
    program = Program(graph, shape)
    writers = {rank: _Writer(rank) for rank in range(topology.world_size)}
    for number, played in enumerate(play(program, costs, steps)):
        for action in played:
            for rank, writer in writers.items():
                if frozenset(graph.of_rank(rank)) == action.rank:
                    writer.write(program, number, action, send_s)
    found = {rank: writer.recording() for rank, writer in writers.items()}
    return Recordings(0, found, {0: ClockOffset.none(0)})


class _Writer:
    """The records of one rank."""

    def __init__(self, rank):
        self._rank = rank
        self._names = ["(further names)"]
        self._records = []

    def write(self, program, step, played, send_s):
        action, phase = played.action, played.action.phase
        is_forward, at = phase is Phase.FORWARD, action.at
        per_run = program.per_run[at]
        first = action.number * per_run
        ready_s = played.free_s
        for receive in program.receives.inputs[played.rank, action]:
            other = receive.sender.at
            link = StageLink(other, at) if is_forward else StageLink(at, other)
            senders = sorted(program.graph.ranks[other])
            kind = Kind.WAIT_ACTIVATIONS if is_forward else Kind.WAIT_GRADIENTS
            self._add(kind, str(link), ready_s, played.begin_s, step, first, 1, senders[0])
            ready_s = played.begin_s
            for sender in senders[1:]:
                self._add(Kind.ARRIVAL, str(link), played.begin_s, played.begin_s, step, first, 1, sender)
        name = f"{at.module}.{at.stage}"
        self._add(Kind.FORWARD if is_forward else Kind.BACKWARD, name, played.begin_s, played.end_s, step, first, per_run)
        links = [StageLink(at, after) for after in program.graph.after[at]] if is_forward else []
        if not is_forward:
            links = [StageLink(before, at) for before in program.graph.before[at] if before in program.trained]
        kind = Kind.SEND_ACTIVATIONS if is_forward else Kind.SEND_GRADIENTS
        for link in links:
            for micro_batch in range(first, first + per_run):
                self._add(kind, str(link), played.end_s - send_s, played.end_s, step, micro_batch, 1)

    def recording(self):
        return Recording(self._rank, self._names, self._records, (), overwritten=0, lost=0, lost_names=0, wall_offset_ns=0)

    def _add(self, kind, name, begin_s, end_s, step, micro_batch, micro_batches, peer=-1):
        if name not in self._names:
            self._names.append(name)
        times = round(begin_s * 1e9), round(end_s * 1e9)
        at = self._names.index(name), micro_batches, 0, kind, 0, len(self._records)
        self._records.append(Record(*times, step, float(step), micro_batch, peer, *at))
