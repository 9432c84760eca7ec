"""What every picture of recordings needs: titles of spans, their tracks, and all times on node 0's clock. Pure."""

from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from mimo_role.monitoring.records import Flag, Kind, Record

DEVICE_TRACK = 1_000_000
_VERBS = {
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.WAIT_ACTIVATIONS: "wait for activations",
    Kind.WAIT_GRADIENTS: "wait for gradients",
    Kind.SEND_ACTIVATIONS: "send activations",
    Kind.SEND_GRADIENTS: "send gradients",
    Kind.WAIT_SENT: "wait for receivers",
    Kind.COLLECTIVE: "wait for a collective of",
}


def title_of(kind: Kind, name: str) -> str:
    """As `forward language.1`; of the script's own spans their name."""
    return f"{_VERBS[kind]} {name}" if kind in _VERBS else name


def track_of(record: Record) -> int:
    """The number of the track that a record is drawn on: its thread, or `DEVICE_TRACK`."""
    return DEVICE_TRACK if record.flags & Flag.DEVICE else record.thread


def track_name(track: int) -> str:
    """`host`, `device`, or `thread 3`."""
    return {0: "host", DEVICE_TRACK: "device"}.get(track, f"thread {track}")


def nodes_of_ranks(plan: LaunchPlan) -> dict[int, int]:
    """By rank, the index of its node."""
    return {rank: number for number, node in enumerate(plan.nodes) for rank in node.ranks}


def clock_offsets(plan: LaunchPlan, found: Recordings) -> dict[int, int]:
    """By rank, what to add to its times to get node 0's, in ns: as it was measured, otherwise by both nodes' time of day."""
    nodes = nodes_of_ranks(plan)
    first = next((each for rank, each in found.by_rank.items() if nodes[rank] == 0), None)
    offsets = {}
    for rank, recording in found.by_rank.items():
        if nodes[rank] in found.clocks:
            offsets[rank] = found.clocks[nodes[rank]].offset_ns
        elif first is None or nodes[rank] == 0:
            offsets[rank] = 0
        else:
            offsets[rank] = recording.wall_offset_ns - first.wall_offset_ns
    return offsets
