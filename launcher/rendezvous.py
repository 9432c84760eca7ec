"""The rendezvous of a run on one machine: nobody to wait for, and a store of its own for every start of the ranks.

torchelastic's c10d rendezvous keeps one store for all restarts, in which restarted ranks find the addresses of the dead.
"""

from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

LOOPBACK = "127.0.0.1"


class OneNodeRendezvous(RendezvousHandler):
    """torchelastic's rendezvous interface for a single agent."""

    def __init__(self, run_id: str, timeout: timedelta) -> None:
        self._run_id = run_id
        self._timeout = timeout
        self._closed = False

    def get_backend(self) -> str:
        return "mimo-one-node"

    @property
    def use_agent_store(self) -> bool:
        """The ranks join over the agent's store."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """A fresh store on a free port of the loopback interface."""
        store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=self._timeout)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(LOOPBACK, store.port))

    def is_closed(self) -> bool:
        return self._closed

    def set_closed(self) -> None:
        self._closed = True

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        self._closed = True
        return True
