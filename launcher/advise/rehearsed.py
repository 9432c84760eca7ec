"""What the recordings of a rehearsal show of the costs of the job. Pure.

Each kind of rank ran in a process of its own, one after another, without peers: its computation, sends and rests are known, but
not how long ranks would have waited for each other, nor how long messages take.
"""

from collections.abc import Container
from itertools import pairwise

from launcher.advise.measured import Measured, rank_steps, rests_by_module
from launcher.advise.recorded_costs import Sent, stage_costs, traffic_of
from launcher.advise.recorded_shape import as_destinations, destinations_of, shape_of
from launcher.advise.recorded_steps import Needed, recorded_steps
from launcher.plan.launch_plan import LaunchPlan
from launcher.trace.recordings import Recordings
from mimo_role.pipeline.stage_graph import StageGraph

OF_REHEARSAL = Needed(0, 2, "mimo-launch rehearse --steps 4, with a script that trains for as many")


def measure_rehearsal(
    plan: LaunchPlan, found: Recordings, *, meets: bool, script_steps: Container[int] | None = None
) -> Measured:
    """The costs of a job, by the median over the steps of its rehearsal. The first step is left out.

    Args:
        plan: of the rehearsal.
        found: what the rank of each kind has recorded; it counts for all ranks of its kind.
        meets: whether all ranks take part in a collective in each step.
        script_steps: only these steps, as the script counts them.

    Raises:
        LaunchError: there is too little to learn from; see `recorded_steps`.
    """
    recorded = recorded_steps(plan, found, script_steps, OF_REHEARSAL)
    taken = [rank_steps(recorded, number) for number in recorded.numbers]
    steps = taken[1:]
    unsent: Sent = [{} for _ in steps]  # nothing was waited for
    destinations = destinations_of(steps[0].values())
    graph = StageGraph(plan.topology, as_destinations(destinations))
    shape, is_known_order = shape_of(graph, steps[0], on_device=recorded.on_device)
    # Of two steps, the first one's rest is all that there is: what follows the last step is not recorded whole.
    rests = rests_by_module(plan.topology, list(pairwise(steps)) or list(pairwise(taken)))
    return Measured(
        topology=plan.topology,
        shape=shape,
        destinations=destinations,
        stages=stage_costs(steps, shape, unsent),
        traffic=traffic_of(steps, unsent),
        rests=dict.fromkeys(plan.topology.grids, max(rests.values())) if meets else rests,
        meets=meets,
        step_s=None,
        steps=len(steps),
        ranks=len(recorded.ranks),
        is_known_order=is_known_order,
    )
