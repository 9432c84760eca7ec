"""Gradients that autograd may still bring or ask for."""

from collections.abc import Callable, Sequence

from mimo_role.bridge.frames import BatchKey
from mimo_role.bridge.wait_cycles import Owed


class PendingGradients:
    """The gradients that this rank owes its peers, and those that it waits for."""

    def __init__(self) -> None:
        self.calls: dict[BatchKey, Callable[[int], None]] = {}
        """Calls of this rank whose gradients have not come back: each starts to receive them from a peer."""
        self.owed: dict[BatchKey, Owed] = {}
        """Gradients that have not been sent."""
        self.started: list[Owed] = []
        """Those of them to which a backward pass has contributed."""

    def send_started(self, but: Sequence[Owed] = ()) -> None:
        """Send the gradients to which backward passes have contributed, with some exceptions: they are complete.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        for owed in [owed for owed in self.started if owed not in but]:
            owed.send()

    def send_all(self) -> None:
        """Send all gradients that are owed; zeros for those to which no backward pass has contributed.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        for owed in list(self.owed.values()):
            owed.send()

    def clear(self) -> None:
        """Drop whatever autograd still brings."""
        self.calls.clear()
        self.owed.clear()
        self.started.clear()
