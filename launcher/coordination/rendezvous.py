"""torchelastic's rendezvous over the plan: nodes have their numbers already, and each start of the ranks gets a new store.

torchelastic's c10d rendezvous keeps one store for all restarts, in which restarted ranks find the addresses of the dead, and
its static one knows nothing of restarts on other nodes.
"""

from torch.distributed import HashStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from launcher.coordination.coordinator import Coordinator

LOOPBACK = "127.0.0.1"


class PlanRendezvous(RendezvousHandler):
    """One agent's side of the rendezvous."""

    def __init__(self, run_id: str, node_rank: int, nodes: int, control: Coordinator | None) -> None:
        """`control` is the line to the other agents; `None` in a plan with one node."""
        self._run_id = run_id
        self._node_rank = node_rank
        self._nodes = nodes
        self._control = control
        self._closed = False
        self.attempt = -1
        """The number of the start that this agent has come to: 0 for the first, on all nodes alike."""

    def get_backend(self) -> str:
        return "mimo-plan"

    @property
    def use_agent_store(self) -> bool:
        """The ranks join over the agent's store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A fresh store on node 0, on a free port.

        Raises:
            LaunchError: the job ends before there is one.
        """
        self.attempt += 1
        if self._control is None:
            store, address = _serve(LOOPBACK), LOOPBACK
        else:
            self.attempt = max(self.attempt, self._control.attempt)
            self._control.start_again(self.attempt)
            if self._node_rank != 0:
                # The ranks' business alone: torchelastic's own questions to it are answered by the plan.
                port = self._control.port_of(self.attempt)
                return self._info(HashStore(), self._control.address, port)
            store, address = _serve(self._control.address), self._control.address
            self._control.offer_port(self.attempt, store.port)
        return self._info(store, address, store.port)

    def _info(self, store: Store, address: str, port: int) -> RendezvousInfo:
        return RendezvousInfo(store, self._node_rank, self._nodes, RendezvousStoreInfo(address, port))

    def num_nodes_waiting(self) -> int:
        """torchelastic's question whether to start the ranks again: yes, if another node has called for it."""
        return int(self._control is not None and self._control.attempt > self.attempt)

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True


def _serve(address: str) -> TCPStore:
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)
