"""The pipeline stages of all modules, and which may send to which. Pure arithmetic."""

from itertools import pairwise
from typing import NamedTuple

from mimo_role.topology.topology import Topology


class StageId(NamedTuple):
    """One stage of one module."""

    module: str
    stage: int

    def __str__(self) -> str:
        return f"{self.module} stage {self.stage}"


class StageLink(NamedTuple):
    """A stage that sends activations, and one that receives them."""

    source: StageId
    target: StageId

    @property
    def is_within_module(self) -> bool:
        """Whether it leads from a stage of a module to its next."""
        return self.source.module == self.target.module

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


def last_stage(topology: Topology, module: str) -> StageId:
    """A module's last stage."""
    return StageId(module, topology.grids[module].axis_size("pp") - 1)


def stage_links(topology: Topology) -> list[StageLink]:
    """All links of a world, in an order that all its ranks share.

    Each stage of a module leads to its next, and a module's last stage to any stage of a module that takes its output.
    """
    links = []
    for name, grid in topology.grids.items():
        stages = [StageId(name, stage) for stage in range(grid.axis_size("pp"))]
        links += [StageLink(*pair) for pair in pairwise(stages)]
        for source in topology.after[name]:
            links += [StageLink(last_stage(topology, source), stage) for stage in stages]
    return links
