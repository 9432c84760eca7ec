"""What the names of recorded spans are about: stages, and links between stages."""

from typing import NamedTuple

from mimo_role import Topology
from mimo_role.monitoring.records import NAME_BYTES
from mimo_role.topology.stage_links import stage_links


class Link(NamedTuple):
    """The modules that a link between stages connects."""

    source: str
    target: str

    @property
    def is_within_module(self) -> bool:
        """Whether it leads from a stage of a module to its next."""
        return self.source == self.target


class SpanNames:
    """The stages and links of a world, by their names as they are recorded."""

    def __init__(self, topology: Topology) -> None:
        self.links = {_recorded(str(link)): Link(link.source.module, link.target.module) for link in stage_links(topology)}
        self.modules: dict[str, str] = {}
        """By stage: `language.1` is of `language`."""
        for name, grid in topology.grids.items():
            self.modules |= {_recorded(f"{name}.{stage}"): name for stage in range(grid.axis_size("pp"))}
        self.pipelines = frozenset(name for name, grid in topology.grids.items() if grid.axis_size("pp") > 1)
        """The modules with several stages."""


def _recorded(name: str) -> str:
    """A name as a ring keeps it."""
    return name.encode()[:NAME_BYTES].decode(errors="ignore")
