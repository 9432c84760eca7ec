"""One node's part of a job."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launcher.console import Say
from launcher.coordination.nodes import Nodes
from launcher.host.fork_server import ForkServer
from launcher.live.view import LiveView
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.placement import Node
from launcher.run_dir.writer import RunDir


@dataclass(frozen=True, kw_only=True)
class NodeJob:
    """What the agent of one node works with."""

    plan: LaunchPlan
    nodes: Nodes
    """All nodes of the job, as this one knows them."""
    server: ForkServer
    run_dir: RunDir
    node_dir: Path
    say: Say
    """Prints a message for a user who waits."""
    show: Callable[[LiveView], None] | None = None
    """On node 0: shows what the ranks do now, at each interval; `None` without a terminal."""

    @property
    def node(self) -> Node:
        """This node in the plan."""
        return self.plan.nodes[self.nodes.node_rank]
