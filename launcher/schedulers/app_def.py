"""A plan as torchx's AppDef: one role per pool, one replica per node."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torchx.specs import AppDef, Resource, Role, macros

from launcher.config.schema import PoolConfig
from launcher.coordination.node_identity import by_pool
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import PLAN, pack

PORT = 29400
_LONGEST_VARIABLE = 128 << 10
"""Bytes that Linux takes for one variable: execve(2), MAX_ARG_STRLEN."""


@dataclass(frozen=True)
class PoolNodes:
    """The nodes of a pool that a plan uses."""

    pool: str
    config: PoolConfig
    nodes: int
    procs: int
    """The most rank processes on one of them."""


def pools_in_order(plan: LaunchPlan, pools: Mapping[str, PoolConfig]) -> list[PoolNodes]:
    """The pools that the plan uses, the one of node 0 first, as schedulers number their nodes."""
    ordered = [plan.nodes[index] for index in by_pool(plan.nodes)]
    found = []
    for name in dict.fromkeys(node.pool for node in ordered):
        procs = [node.procs for node in ordered if node.pool == name]
        found.append(PoolNodes(name, pools.get(name) or PoolConfig(procs_per_node=max(procs)), len(procs), max(procs)))
    return found


def over_shared_files(plan: LaunchPlan, pools: Sequence[PoolNodes], command: Sequence[str]) -> AppDef:
    """An AppDef whose replicas find out by themselves which node they are, and share this machine's files: SLURM.

    Args:
        plan: what is run.
        pools: the plan's pools, in order.
        command: what each node starts.
    """
    program, *arguments = command
    roles = [
        Role(name=pool.pool, image="", entrypoint=program, args=list(arguments), env=dict(plan.env), num_replicas=pool.nodes)
        for pool in pools
    ]
    return AppDef(name=plan.name, roles=roles)


def self_contained(plan: LaunchPlan, pools: Sequence[PoolNodes], image: str, here: Path) -> AppDef:
    """An AppDef that carries the plan in its environment, for images: Kubernetes and torchx's other schedulers.

    The image's working folder stands for the current one: paths below it are taken relative to it.

    Raises:
        LaunchError: a script outside the current folder, or a plan that does not fit into a variable.
    """
    carried = pack(_relative(plan, here))
    if len(PLAN) + 1 + len(carried) >= _LONGEST_VARIABLE:
        raise LaunchError(
            f"the plan takes {len(carried) >> 10} KiB compressed, more than a variable holds; use SLURM, or fewer nodes"
        )
    roles = []
    for pool in pools:
        start = f"exec mimo-launch run @{PLAN}"
        if len(plan.nodes) > 1:
            # torchx tells the first replica of the first role by `localhost`, which no other node could reach.
            start = (
                f'host="${{{macros.rank0_env}:-}}"; case "$host" in ""|localhost) host="`hostname`";; esac; '
                # Pods get their names as they start.
                """timeout 300 sh -c 'until getent hosts "$1" >/dev/null; do sleep 1; done' sh "$host"; """
                f'{start} --node-rank "$MIMO_POOL:{macros.replica_id}" --rdzv-endpoint "$host:{PORT}"'
            )
        roles.append(
            Role(
                name=pool.pool,
                image=image,
                entrypoint="sh",
                args=["-c", start],
                # torchx looks for its macros in the values.
                env={name: value.replace("$", "$$") for name, value in plan.env.items()}
                | {PLAN: carried, "MIMO_POOL": pool.pool.replace("$", "$$")},
                num_replicas=pool.nodes,
                port_map={"rdzv": PORT},
                resource=Resource(
                    cpu=pool.config.resources.cpu or pool.procs,
                    gpu=pool.config.resources.gpu,
                    memMB=pool.config.resources.memory_mb,
                ),
            )
        )
    # Labels of Kubernetes take no other characters.
    return AppDef(name=re.sub(r"[^A-Za-z0-9]+", "-", plan.name).strip("-") or "mimo", roles=roles)


def _relative(plan: LaunchPlan, here: Path) -> LaunchPlan:
    script = plan.entry.script
    if script is not None:
        if not Path(script).is_relative_to(here):
            raise LaunchError(f"entry.script: {script} is outside {here}, for which the image's working folder stands")
        script = str(Path(script).relative_to(here))
    run_dir = Path(plan.run_dir)
    run_dir = run_dir.relative_to(here) if run_dir.is_relative_to(here) else run_dir
    return replace(plan, entry=replace(plan.entry, script=script), run_dir=str(run_dir))
