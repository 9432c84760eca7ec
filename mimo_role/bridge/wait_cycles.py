"""Detection of ranks that wait for each other in a cycle.

Each rank that waits reports that to the ranks it waits for, and these forward the report to the ranks that they wait for
(K. Chandy, J. Misra, L. Haas, "Distributed deadlock detection", ACM TOCS 1983). A report that reaches a rank of its own path
has found a cycle.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mimo_role.bridge.expected_batch import named
from mimo_role.bridge.frames import BatchKey, Edge, Want
from mimo_role.bridge.message_tags import Purpose

Path = tuple[Edge, ...]

_LONGEST_PATH = 32


class Awaited(Protocol):
    """A batch or receipt that has not arrived."""

    @property
    def want(self) -> Want:
        """From which peer, and what."""

    def describe(self) -> str:
        """For messages."""


class Owed(Protocol):
    """Gradients that backward passes may still contribute to, and that a peer may wait for."""

    def send(self) -> None:
        """Send their sum; zeros if no backward pass has contributed."""


class WaitCycles:
    """The reports of ranks that wait for this one, directly or through others."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._forwarded: set[tuple[Path, Want]] = set()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, path: Path) -> None:
        """Add a report that has arrived."""
        self._paths.append(path)

    def resolve(
        self,
        rank: int,
        awaited: Sequence[Awaited],
        owed: Mapping[BatchKey, Owed],
        is_valid: Callable[[Edge], bool],
        forward: Callable[[int, Path], None],
    ) -> str | None:
        """Resolve a cycle by sending the gradients that this rank owes: it cannot run a backward while it waits.

        Args:
            rank: this one, which waits.
            awaited: what it waits for.
            owed: the gradients that it has not sent.
            is_valid: whether a peer that has reported to wait for this rank still does.
            forward: sends a report to a peer.

        Returns:
            The error, if there is a cycle in which no rank owes gradients; otherwise `None`.
        """
        self._paths = [path for path in self._paths if is_valid(path[-1])]
        self._forwarded = {item for item in self._forwarded if item[0] in self._paths}
        for path in list(self._paths):
            if not is_valid(path[-1]):  # resolving another one may have resolved this one too
                continue
            want, ranks = path[-1].want, {edge.rank for edge in path}
            closing = next((item for item in awaited if item.want.peer in ranks), None)
            if closing is None:
                self._forward(path, rank, awaited, forward)
            elif want.key in owed:
                self._paths.remove(path)
                owed[want.key].send()
            elif not any(map(_is_for_gradients, (*(edge.want for edge in path[:-1]), closing.want))):
                return _described(rank, path, closing)
        return None

    def _forward(self, path: Path, rank: int, awaited: Sequence[Awaited], forward: Callable[[int, Path], None]) -> None:
        for item in awaited:
            if len(path) < _LONGEST_PATH and (path, item.want) not in self._forwarded:
                self._forwarded.add((path, item.want))
                forward(item.want.peer, (*path, Edge(rank, item.want)))


def _is_for_gradients(want: Want) -> bool:
    """Whether the awaited rank resolves the cycle: it sends the gradients, or reports the error."""
    return want.key.purpose is Purpose.BACK and not want.is_receipt


def _described(rank: int, path: Path, closing: Awaited) -> str:
    want = path[-1].want
    way = "" if len(path) == 1 else f" (by way of ranks {', '.join(str(edge.rank) for edge in path)})"
    return (
        f"{closing.describe()}, while rank {path[-1].rank} waits for {named(want.key)} of bridge {want.key.bridge} from rank "
        f"{rank}{way}: these ranks wait for each other; both sides of a bridge call it equally often and in the same order"
    )
