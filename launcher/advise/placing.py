"""Whether another layout of a run can be planned on the nodes that the run had."""

from collections.abc import Callable, Mapping, Sequence

from launcher.config.loader import load
from launcher.config.schema import PoolConfig
from launcher.errors import ConfigError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import place
from launcher.plan.placement_warnings import review
from launcher.run_dir.layout import RunDirLayout
from mimo_role import Topology
from mimo_role.groups.rounds import schedule


def accepts(run_dir: RunDirLayout, plan: LaunchPlan) -> Callable[[Topology], Sequence[str]]:
    """A function that returns the plan's warnings about a layout which the run's own layout does not cause.

    It raises a `MimoError` where the planner refuses the layout: it does not fit the pools, or a group needs an axis that a
    module does not have.
    """
    pools, pool_of = _pools(run_dir, plan)
    known = {warning.code for warning in review(plan.topology, plan.nodes, pools)}

    def remarks(topology: Topology) -> Sequence[str]:
        nodes = place(topology, pools, pool_of)
        schedule(topology, plan.groups)
        return [f"warning ({each.code}): {each.message}" for each in review(topology, nodes, pools) if each.code not in known]

    return remarks


def _pools(run_dir: RunDirLayout, plan: LaunchPlan) -> tuple[Mapping[str, PoolConfig], Mapping[str, str | None]]:
    """The pools of the run, and the pool that each module is bound to.

    They are in the config beside the plan. Without one, the nodes of the plan are taken, on which modules are free.
    """
    try:
        config, _ = load(run_dir.config_file, [])
    except ConfigError:
        config = None
    if config is not None and config.pools:
        return config.pools, {name: module.pool for name, module in config.modules.items()}
    pools = {}
    for name in dict.fromkeys(node.pool for node in plan.nodes):
        own = [node for node in plan.nodes if node.pool == name]
        pools[name] = PoolConfig(nodes=len(own), procs_per_node=max(node.procs for node in own))
    return pools, dict.fromkeys(plan.topology.grids)
