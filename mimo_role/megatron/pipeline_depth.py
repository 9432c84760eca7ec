"""The places of stages in a pipeline over several modules, as Megatron-Core counts them. Pure arithmetic."""

from mimo_role.topology.stage_links import StageId, last_stage
from mimo_role.topology.topology import Topology


def depth_of(topology: Topology, at: StageId) -> int:
    """The most stages on a way from a module that takes no other's output to this stage, without it."""
    before = (depth_of(topology, last_stage(topology, source)) + 1 for source in topology.after[at.module])
    return max(before, default=0) + at.stage


def total_depth(topology: Topology) -> int:
    """The most stages on a way from a module that takes no other's output to one that feeds no other."""
    return max(depth_of(topology, last_stage(topology, end)) + 1 for end in topology.module_graph.ends)
