"""A plan as torchx's AppDef: one role per pool, one replica per node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.config.schema import PoolConfig
from launcher.coordination.node_identity import by_pool
from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import PLAN, pack
from launcher.schedulers.kubernetes_names import job_name, pool_names
from launcher.schedulers.torchx_api import AppDef, Resource, Role, macros

PORT = 29400
_LONGEST_VARIABLE = 128 << 10
"""The most bytes of one variable on Linux: execve(2), MAX_ARG_STRLEN."""


@dataclass(frozen=True)
class PoolNodes:
    """The nodes of one pool that a plan uses."""

    pool: str
    config: PoolConfig
    nodes: int
    procs: int
    """The most rank processes on one of them."""


def pools_in_order(plan: LaunchPlan, pools: Mapping[str, PoolConfig]) -> list[PoolNodes]:
    """The pools that the plan uses, that of node 0 first: schedulers number their nodes in this order."""
    ordered = [plan.nodes[index] for index in by_pool(plan.nodes)]
    found = []
    for name in dict.fromkeys(node.pool for node in ordered):
        procs = [node.procs for node in ordered if node.pool == name]
        found.append(PoolNodes(name, pools.get(name) or PoolConfig(procs_per_node=max(procs)), len(procs), max(procs)))
    return found


def over_shared_files(plan: LaunchPlan, pools: Sequence[PoolNodes], command: Sequence[str]) -> AppDef:
    """An AppDef for SLURM: replicas read their node rank from SLURM's variables and share this machine's file system.

    Args:
        plan: the plan to run.
        pools: the pools of the plan, in order.
        command: the command to start on each node.
    """
    program, *arguments = command
    roles = [
        Role(name=pool.pool, image="", entrypoint=program, args=list(arguments), env=dict(plan.env), num_replicas=pool.nodes)
        for pool in pools
    ]
    return AppDef(name=plan.name, roles=roles)


def self_contained(plan: LaunchPlan, pools: Sequence[PoolNodes], image: str, cwd: Path) -> AppDef:
    """An AppDef for schedulers that run container images, such as Kubernetes: the plan is in an environment variable.

    The working directory of the image corresponds to `cwd`: paths below it become relative.

    Raises:
        LaunchError: a script outside `cwd`, or a plan that does not fit into a variable.
    """
    packed = pack(_relative(plan, cwd))
    if len(PLAN) + 1 + len(packed) >= _LONGEST_VARIABLE:
        raise LaunchError(
            f"the plan has {len(packed) >> 10} KiB compressed, too much for an environment variable; use SLURM, or fewer nodes"
        )
    names = pool_names(pool.pool for pool in pools)
    roles = []
    for pool in pools:
        start = f"exec mimo-launch run @{PLAN}"
        if len(plan.nodes) > 1:
            # In the first replica of the first role, torchx sets the variable to `localhost`, which other nodes cannot reach.
            start = (
                f'host="${{{macros.rank0_env}:-}}"; case "$host" in ""|localhost) host="`hostname`";; esac; '
                # The name of a pod resolves only once it has started.
                """timeout 300 sh -c 'until getent hosts "$1" >/dev/null; do sleep 1; done' sh "$host"; """
                f'{start} --node-rank "$MIMO_POOL:{macros.replica_id}" --rdzv-endpoint "$host:{PORT}"'
            )
        roles.append(
            Role(
                name=names[pool.pool],
                image=image,
                entrypoint="sh",
                args=["-c", start],
                # torchx substitutes macros in the values.
                env={name: value.replace("$", "$$") for name, value in plan.env.items()}
                | {PLAN: packed, "MIMO_POOL": pool.pool.replace("$", "$$")},
                num_replicas=pool.nodes,
                port_map={"rdzv": PORT},
                resource=Resource(
                    cpu=pool.config.resources.cpu or pool.procs,
                    gpu=pool.config.resources.gpu,
                    memMB=pool.config.resources.memory_mb,
                ),
            )
        )
    return AppDef(name=job_name(plan.name, {names[pool.pool]: pool.nodes for pool in pools}), roles=roles)


def _relative(plan: LaunchPlan, cwd: Path) -> LaunchPlan:
    script = plan.entry.script
    if script is not None:
        if not Path(script).is_relative_to(cwd):
            raise LaunchError(f"entry.script: {script} is outside {cwd}, the counterpart of the image's working directory")
        script = str(Path(script).relative_to(cwd))
    run_dir = Path(plan.run_dir)
    run_dir = run_dir.relative_to(cwd) if run_dir.is_relative_to(cwd) else run_dir
    return replace(plan, entry=replace(plan.entry, script=script), run_dir=str(run_dir))
