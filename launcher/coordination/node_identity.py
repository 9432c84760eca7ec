"""Which node of the plan this machine is, and where all of them meet."""

import re
from dataclasses import dataclass

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from mimo_role.host import environ, network
from mimo_role.host.slurm import DETECT, SlurmTask

_HOW_TO_START = "start it on each node with --node-rank I --rdzv-endpoint HOST:PORT, or with srun inside a SLURM job"


@dataclass(frozen=True)
class Endpoint:
    """Where the agents of several nodes meet: the host of node 0, and a port there."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class LocalNode:
    """This machine's place in the plan."""

    node_rank: int = 0
    """Its index among the plan's nodes."""
    endpoint: Endpoint | None = None
    """`None` in a plan with one node."""
    slurm_job: str | None = None
    """The SLURM job whose step this process is a task of."""


def resolve_local_node(plan: LaunchPlan, node_rank: str | None, endpoint: str | None) -> LocalNode:
    """Take the place from the command line, else from SLURM, else from the plan's having one node.

    Args:
        plan: what is started.
        node_rank: `--node-rank`: a node's index in the plan, or `POOL:K`, the K-th node of a pool.
        endpoint: `--rdzv-endpoint`, `HOST:PORT`.

    Raises:
        LaunchError: it is not known, contradicts the plan, or names an endpoint that other nodes cannot reach.
    """
    nodes = len(plan.nodes)
    if node_rank is not None or endpoint is not None:
        here = _from_options(plan, node_rank, endpoint)
    elif (task := environ.slurm_task()) is not None:
        here = _from_slurm(plan, task)
    elif nodes > 1 and (job := environ.slurm_job()) is not None:
        raise LaunchError(
            f"the plan has {nodes} nodes, and inside SLURM job {job} srun starts one task on each: "
            f"srun --ntasks-per-node=1 mimo-launch run ... ({DETECT}=off ignores SLURM)"
        )
    elif nodes > 1:
        raise LaunchError(f"the plan has {nodes} nodes: {_HOW_TO_START}; pools=null puts all ranks on this machine")
    else:
        here = LocalNode()
    if here.endpoint is not None:
        _check_reachable(here.endpoint, here.node_rank)
    return here


def by_pool(nodes: tuple[Node, ...]) -> list[int]:
    """The plan's nodes pool by pool, in the order in which pools first appear, as schedulers number them."""
    pools = list(dict.fromkeys(node.pool for node in nodes))
    return sorted(range(len(nodes)), key=lambda index: (pools.index(nodes[index].pool), index))


def _from_options(plan: LaunchPlan, node_rank: str | None, endpoint: str | None) -> LocalNode:
    if node_rank is None and len(plan.nodes) > 1:
        raise LaunchError(f"--rdzv-endpoint without --node-rank: which of the plan's {len(plan.nodes)} nodes is this?")
    index = 0 if node_rank is None else _node_index(plan.nodes, node_rank)
    if len(plan.nodes) == 1:
        return LocalNode()
    if endpoint is None:
        raise LaunchError(
            "--node-rank without --rdzv-endpoint: where do the nodes meet? Give the host of node 0 and a free port"
        )
    task = environ.slurm_task()
    return LocalNode(index, _parse(endpoint), task.job_id if task is not None else None)


def _node_index(nodes: tuple[Node, ...], text: str) -> int:
    pool, colon, number = text.rpartition(":")
    if not number.isascii() or not number.isdigit():
        raise LaunchError(f"--node-rank {text}: not a number from 0, nor POOL:NUMBER")
    among = [index for index, node in enumerate(nodes) if not colon or node.pool == pool]
    if not among:
        raise LaunchError(f"--node-rank {text}: no pool {pool!r}; there is {', '.join(dict.fromkeys(n.pool for n in nodes))}")
    if int(number) >= len(among):
        where = f"pool {pool}" if colon else "the plan"
        raise LaunchError(f"--node-rank {text}: {where} has {len(among)} nodes; use 0 to {len(among) - 1}")
    return among[int(number)]


def _parse(text: str) -> Endpoint:
    found = endpoint_from(text)
    if found is None:
        raise LaunchError(f"--rdzv-endpoint {text}: not HOST:PORT with a port from 1 to 65535")
    return found


def endpoint_from(text: str) -> Endpoint | None:
    """The endpoint that is written `HOST:PORT` or `[ADDRESS]:PORT`; `None` for any other text."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^:\s\[\]]+)):(\d{1,5})", text, re.ASCII)
    if match is None or not 0 < int(match[3]) < 65536:
        return None
    return Endpoint(match[1] or match[2], int(match[3]))


def _from_slurm(plan: LaunchPlan, task: SlurmTask) -> LocalNode:
    nodes = len(plan.nodes)
    if task.tasks != task.nodes:
        raise LaunchError(
            f"srun started {task.tasks} tasks on {task.nodes} nodes, and mimo-launch starts the ranks of a node itself: "
            f"use srun --ntasks-per-node=1 ({DETECT}=off ignores SLURM)"
        )
    if task.nodes != nodes:
        raise LaunchError(
            f"srun started mimo-launch on {task.nodes} nodes, but the plan has {nodes}: "
            f"use srun --nodes={nodes}, or change pools ({DETECT}=off ignores SLURM)"
        )
    order = by_pool(plan.nodes)
    if nodes == 1:
        return LocalNode(slurm_job=task.job_id)
    if len(task.hosts) != nodes:
        raise LaunchError(
            f"SLURM's node list names {len(task.hosts)} nodes for a step on {nodes}; give --node-rank and --rdzv-endpoint"
        )
    # node 0 is the first of the first pool, which SLURM counts first.
    return LocalNode(order[task.node], Endpoint(task.hosts[0], task.port), task.job_id)


def _check_reachable(endpoint: Endpoint, node_rank: int) -> None:
    addresses = network.addresses_of(endpoint.host)
    if all(network.is_loopback(address) for address in addresses):
        raise LaunchError(
            f"{endpoint.host} is {addresses[0]} on this machine, a loopback address: each node would wait for itself; "
            "name the host of node 0 by an address that the others reach"
        )
    if node_rank == 0 and not any(network.is_local(address) for address in addresses):
        raise LaunchError(
            f"this is node 0, but {endpoint.host} ({addresses[0]}) is another machine; "
            "give all nodes the host on which node 0 runs"
        )
