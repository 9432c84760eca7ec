"""Ranks that wait for each other in a cycle, found while they wait.

Each rank that waits reports that to those it waits for, and these pass the report on to those that they wait for themselves
(K. Chandy, J. Misra, L. Haas, "Distributed deadlock detection", ACM TOCS 1983). A report that comes to a rank of its own path
has closed a cycle.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from mimo_role.bridge.expected_batch import named
from mimo_role.bridge.frames import BatchKey, Edge, Want
from mimo_role.bridge.message_tags import Purpose

Path = tuple[Edge, ...]

_LONGEST_PATH = 32


class Awaited(Protocol):
    """Something that a wait has not seen yet."""

    @property
    def want(self) -> Want:
        """From whom, and what."""

    def describe(self) -> str:
        """The same for messages."""


class Owed(Protocol):
    """Gradients that autograd may still bring, and that a sender may wait for."""

    def send(self) -> None:
        """Send what there is; zeros where there is nothing."""


class WaitCycles:
    """The reports of ranks that wait, directly or by way of others, for this one."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._passed_on: set[tuple[Path, Want]] = set()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def add(self, path: Path) -> None:
        """A report has come."""
        self._paths.append(path)

    def resolve(
        self,
        rank: int,
        awaited: Sequence[Awaited],
        owed: Mapping[BatchKey, Owed],
        is_valid: Callable[[Edge], bool],
        pass_on: Callable[[int, Path], None],
    ) -> str | None:
        """Resolve a cycle by sending the gradients that this rank owes: it cannot run a backward while it waits.

        Args:
            rank: this one, which waits.
            awaited: what for.
            owed: the gradients that autograd may still bring.
            is_valid: whether a peer that has reported to wait for this rank must still do so.
            pass_on: sends a report to a peer.

        Returns:
            What is wrong, where a cycle has no gradients that some rank of it could send; else `None`.
        """
        self._paths = [path for path in self._paths if is_valid(path[-1])]
        self._passed_on = {passed for passed in self._passed_on if passed[0] in self._paths}
        for path in list(self._paths):
            if not is_valid(path[-1]):  # what one of the others has led to may be the answer to this one, too
                continue
            want, ranks = path[-1].want, {edge.rank for edge in path}
            closing = next((item for item in awaited if item.want.peer in ranks), None)
            if closing is None:
                self._pass_on(path, rank, awaited, pass_on)
            elif want.key in owed:
                self._paths.remove(path)
                owed[want.key].send()
            elif not any(map(_is_for_gradients, (*(edge.want for edge in path[:-1]), closing.want))):
                return _described(rank, path, closing)
        return None

    def _pass_on(self, path: Path, rank: int, awaited: Sequence[Awaited], pass_on: Callable[[int, Path], None]) -> None:
        for item in awaited:
            if len(path) < _LONGEST_PATH and (path, item.want) not in self._passed_on:
                self._passed_on.add((path, item.want))
                pass_on(item.want.peer, (*path, Edge(rank, item.want)))


def _is_for_gradients(want: Want) -> bool:
    """Whether the awaited rank decides by itself: it sends the gradients, or reports the cycle."""
    return want.key.purpose is Purpose.BACK and not want.is_receipt


def _described(rank: int, path: Path, closing: Awaited) -> str:
    want = path[-1].want
    way = "" if len(path) == 1 else f" (by way of ranks {', '.join(str(edge.rank) for edge in path)})"
    return (
        f"{closing.describe()}, while rank {path[-1].rank} waits for {named(want.key)} of bridge {want.key.bridge} from rank "
        f"{rank}{way}: these ranks wait for each other; both sides of a bridge call it equally often and in the same order"
    )
