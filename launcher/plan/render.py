"""A plan as a table and as a line for people, and as JSON for programs."""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from launcher.formatting import counted, ranges
from launcher.plan import communicators
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from mimo_role.groups.rounds import schedule

FULL_TABLE_RANKS = 64
"""Above this many ranks the table has a line per node, module and stage instead of one per rank."""


def as_json(plan: LaunchPlan) -> str:
    """The plan with every rank spelled out."""
    topology = plan.topology
    rounds = schedule(topology, plan.groups)
    return json.dumps(
        {
            "name": plan.name,
            "digest": topology.digest,
            "topology": topology.as_dict(),
            "nodes": [asdict(node) for node in plan.nodes],
            "ranks": [
                {
                    "rank": rank,
                    "node": node.name,
                    "local_rank": local_rank,
                    "role": topology.role_of(rank).as_dict(),
                    "coords": topology.coords_of(rank),
                }
                for node in plan.nodes
                for local_rank, rank in enumerate(node.ranks)
            ],
            "warnings": [{"code": warning.code, "message": warning.message} for warning in plan.warnings],
            "rounds": len(rounds),
            "groups": rounds.as_list(),
            "nccl": communicators.as_dict(plan, rounds),
        }
    )


def as_table(plan: LaunchPlan) -> str:
    """The rank map, one line per rank, or folded for worlds above `FULL_TABLE_RANKS`; then the warnings."""
    from tabulate import tabulate

    world_size, nodes = plan.topology.world_size, len(plan.nodes)
    title = (
        f"{plan.name}: {counted(world_size, 'rank')} on {counted(nodes, 'node')}, {plan.topology.layout.value}, "
        f"topology {plan.topology.digest[:12]}"
    )
    rows = list(_full_rows(plan) if world_size <= FULL_TABLE_RANKS else _folded_rows(plan))
    headers = ["rank", "node", "local", "module", "stage", "coordinates"]
    if world_size > FULL_TABLE_RANKS:
        headers[0:3] = ["ranks", "nodes", "per node"]
    table = tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)
    notes = [f"warning ({warning.code}): {warning.message}" for warning in plan.warnings]
    return "\n".join([title, "", table, *_graph(plan), *([""] if notes else []), *notes])


def _graph(plan: LaunchPlan) -> list[str]:
    """Which module feeds which, if it is not the language module alone that takes the others' outputs."""
    graph = plan.topology.module_graph
    if graph.is_default:
        return []
    return ["", "outputs: " + "; ".join(f"{name} -> {', '.join(to)}" for name, to in graph.feeds.items() if to)]


def summary(plan: LaunchPlan) -> str:
    """The plan on one line: `4 ranks (vision dp2, language tp2; non_colocated) -> runs/job`."""
    grids = plan.topology.grids
    modules = ", ".join(
        " ".join([name, *(f"{axis}{grid.axis_size(axis)}" for axis in grid.dim_names if grid.axis_size(axis) > 1)])
        for name, grid in grids.items()
    )
    nodes = f" on {len(plan.nodes)} nodes" if len(plan.nodes) > 1 else ""
    run_dir, current = Path(plan.run_dir), Path.cwd()
    shown = run_dir.relative_to(current) if run_dir.is_relative_to(current) else run_dir
    return f"{counted(plan.topology.world_size, 'rank')}{nodes} ({modules}; {plan.topology.layout.value}) -> {shown}"


def _full_rows(plan: LaunchPlan) -> Iterator[list[str]]:
    for node in plan.nodes:
        for local_rank, rank in enumerate(node.ranks):
            for index, (module, coords) in enumerate(plan.topology.coords_of(rank).items()):
                grid = plan.topology.grids[module]
                where = [str(rank), node.name, str(local_rank)] if index == 0 else ["", "", ""]
                stage = f"{coords['pp'] + 1}/{grid.axis_size('pp')}"
                shown = " ".join(f"{axis}={at}" for axis, at in coords.items() if grid.axis_size(axis) > 1)
                yield [*where, module, stage, shown or "-"]


def _folded_rows(plan: LaunchPlan) -> Iterator[list[str]]:
    """A line for each run of neighbouring ranks that are on the same stage of the same module."""
    first_ranks = [node.first_rank for node in plan.nodes]
    for module, grid in plan.topology.grids.items():
        order = grid.dim_names
        faster = order[: order.index("pp")]
        run = grid.stride("pp")
        for first in range(grid.ranks.start, grid.ranks.stop, run):
            ranks = range(first, first + run)
            nodes = plan.nodes[bisect_right(first_ranks, first) - 1 : bisect_left(first_ranks, ranks.stop)]
            coords = grid.coords(first)
            axes = [(axis, coords[axis], grid.axis_size(axis)) for axis in order if axis != "pp"]
            shown = [f"{axis}=0-{size - 1}" if axis in faster else f"{axis}={at}" for axis, at, size in axes if size > 1]
            stage = f"{coords['pp'] + 1}/{grid.axis_size('pp')}"
            yield [ranges(ranks), _node_range(nodes), _per_node(nodes), module, stage, " ".join(shown) or "-"]


def _node_range(nodes: Sequence[Node]) -> str:
    return nodes[0].name if len(nodes) == 1 else f"{nodes[0].name} .. {nodes[-1].name}"


def _per_node(nodes: Sequence[Node]) -> str:
    return ", ".join(str(procs) for procs, _ in groupby(node.procs for node in nodes))
