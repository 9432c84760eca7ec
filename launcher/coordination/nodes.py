"""The nodes of a job, one or several, behind one interface."""

import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import TypeAlias

from launcher.console import Say
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.node_identity import LocalNode
from launcher.coordination.single_node import SingleNode
from launcher.plan.launch_plan import LaunchPlan

logger = logging.getLogger(__name__)

Nodes: TypeAlias = SingleNode | Coordinator


@contextlib.contextmanager
def join_nodes(plan: LaunchPlan, node: LocalNode, run_id: str, say: Say) -> Iterator[Nodes]:
    """Wait until all nodes are there. Node 0's `run_id` holds for all.

    An exception in the block aborts the job on all nodes.

    Raises:
        LaunchError: the nodes do not come together.
    """
    if len(plan.nodes) == 1:
        yield SingleNode(plan, socket.gethostname(), run_id)
        return
    coordinator = Coordinator(plan, node, socket.gethostname())
    try:
        coordinator.meet(run_id, say)
        logger.info("all %d nodes are here: %s", len(plan.nodes), ", ".join(map(str, coordinator.state.members)))
        yield coordinator
    except BaseException as error:
        coordinator.abort_after(error)
        raise
    finally:
        coordinator.leave(plan.runtime.grace_s)
