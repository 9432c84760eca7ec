"""torchelastic's rendezvous over the plan: nodes have their numbers already, and each attempt gets a new store.

torchelastic's c10d rendezvous keeps one store for all restarts, in which restarted ranks find the addresses of the dead. Its
static one does not support restarts on other nodes.
"""

from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from launcher.coordination.nodes import Nodes


class PlanRendezvous(RendezvousHandler):
    """One agent's side of the rendezvous."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._is_closed = False
        self.attempt = -1
        """The latest attempt that this agent has come to: from 0, on all nodes alike."""

    def get_backend(self) -> str:
        return "mimo-plan"

    @property
    def use_agent_store(self) -> bool:
        """The ranks join over the agent's store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A new store on node 0, on a free port.

        Raises:
            LaunchError: the job is aborted before there is one.
        """
        self.attempt = max(self.attempt + 1, self._nodes.state.attempt)
        self._nodes.start_attempt(self.attempt)
        store, address, port = self._nodes.open_rank_store(self.attempt)
        members = len(self._nodes.state.members)
        return RendezvousInfo(store, self._nodes.node_rank, members, RendezvousStoreInfo(address, port))

    def num_nodes_waiting(self) -> int:
        """torchelastic's question whether to restart the ranks: yes, if another node has started an attempt."""
        return int(self._nodes.state.attempt > self.attempt)

    def is_closed(self) -> bool:
        return self._is_closed

    def set_closed(self) -> None:
        self._is_closed = True

    def get_run_id(self) -> str:
        return self._nodes.state.run_id

    def shutdown(self) -> bool:
        self._is_closed = True
        return True
