"""Which ranks do the same, and which of them count for what a job has read. Pure arithmetic."""

from collections.abc import Hashable

from mimo_role import Topology

_LANES = ("dp", "gtp_remat")
"""The axes along which ranks have other samples."""


def peer_group(topology: Topology, rank: int) -> Hashable:
    """Equal for ranks with the same modules and stages: those compute the same, on other samples or other parts of tensors."""
    return tuple((name, coords.get("pp", 0)) for name, coords in topology.coords_of(rank).items())


def stage_of(topology: Topology, module: str, rank: int) -> int:
    """A rank's pipeline stage of a module."""
    return topology.grids[module].coords(rank).get("pp", 0)


def is_first_of_lane(topology: Topology, module: str, rank: int) -> bool:
    """Whether a rank is the one of its lane and stage that counts: the others have the same samples."""
    coords = topology.grids[module].coords(rank)
    return not any(at for axis, at in coords.items() if axis not in (*_LANES, "pp"))
