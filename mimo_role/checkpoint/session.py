"""What the checkpoints of one context share: a process group, and the save that is being written in the background."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from mimo_role.context import RoleContext
from mimo_role.errors import CheckpointError
from mimo_role.groups.creation import free
from mimo_role.topology.topology import Topology

Own = TypeVar("Own")
Decision = TypeVar("Decision")
_NAMED_RANKS = 3


class _Pending(NamedTuple):
    path: Path
    future: Future[Any]


class _Outcome(NamedTuple):
    """What rank 0 sends to all ranks."""

    value: Any
    problem: str | None


class CheckpointSession:
    """The group for the messages of checkpoints, over gloo: they are apart from training's, in the background as well."""

    def __init__(self, ctx: RoleContext) -> None:
        group = ctx.new_group(range(ctx.world_size), backend="gloo", group_desc="checkpoint")
        assert group is not None
        self.group = group
        self._rank = ctx.rank
        self._topology: Topology = ctx.topology
        self._pending: _Pending | None = None

    def agree(self, own: Callable[[], Own], decide: Callable[[list[Own]], Decision]) -> Decision:
        """Have rank 0 decide from all ranks' values. Collective; an error on one rank is one on all ranks.

        Raises:
            Exception: of `own`, on the rank where it failed.
            CheckpointError: of `decide`, or `own` failed on other ranks.
        """
        value, error = None, None
        try:
            value = own()
        except Exception as problem:
            error = problem
        gathered: list[Any] | None = [None] * self._topology.world_size if self._rank == 0 else None
        dist.gather_object((value, error and _named(error)), gathered, dst=0, group=self.group)
        outcome: list[Any] = [None if gathered is None else self._outcome(gathered, decide)]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if error is not None:
            raise error
        if outcome[0].problem is not None:
            raise CheckpointError(outcome[0].problem)
        decision: Decision = outcome[0].value
        return decision

    def _outcome(self, gathered: list[Any], decide: Callable[[list[Any]], Any]) -> _Outcome:
        failed = {rank: problem for rank, (_, problem) in enumerate(gathered) if problem is not None}
        if failed:
            return _Outcome(None, self._in_ranks(failed))
        try:
            return _Outcome(decide([value for value, _ in gathered]), None)
        except Exception as error:
            return _Outcome(None, str(error) if isinstance(error, CheckpointError) else _named(error))

    def start(self, path: Path, future: Future[Any]) -> None:
        """Note a save that is written in the background."""
        assert self._pending is None
        self._pending = _Pending(path, future)

    def wait(self) -> None:
        """Wait for the save in the background.

        Raises:
            CheckpointError: it failed, on whichever rank.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with self.reported(f"{pending.path}: not saved"):
                pending.future.result()

    def close(self) -> None:
        """Wait for the save in the background, and destroy the group.

        Raises:
            CheckpointError: as `wait`.
        """
        try:
            self.wait()
        finally:
            free(self.group)

    @contextmanager
    def reported(self, what: str) -> Iterator[None]:
        """Turn errors, of DCP, of the disk and of connections too, into a `CheckpointError` that begins with `what`."""
        try:
            yield
        except CheckpointException as error:  # of several ranks, and no Exception
            problems = {rank: _named(failure) for rank, (failure, _) in error.failures.items()}
            raise CheckpointError(f"{what}: {self._in_ranks(problems)}") from error
        except Exception as error:
            raise CheckpointError(f"{what}: {_named(error)}") from error

    def label_of(self, rank: int) -> str:
        """`rank 3 (vision.dp1)`."""
        return f"rank {rank} ({self._topology.label_of(rank)})"

    def _in_ranks(self, problems: dict[int, str]) -> str:
        """The first ranks' problems, equal ones once."""
        shown: dict[str, int] = {}
        for rank, problem in sorted(problems.items()):
            shown.setdefault(problem, rank)
        texts = [f"{self.label_of(rank)}: {problem}" for problem, rank in list(shown.items())[:_NAMED_RANKS]]
        more = len(problems) - len(texts)
        return "; ".join(texts) + (f"; {more} more ranks" if more > 0 else "")


_sessions: WeakKeyDictionary[RoleContext, CheckpointSession] = WeakKeyDictionary()


def session_of(ctx: RoleContext) -> CheckpointSession:
    """The context's session. Collective over the world at the first call."""
    if ctx not in _sessions:
        _sessions[ctx] = session = CheckpointSession(ctx)
        ctx._before_close(session.close)
    return _sessions[ctx]


def _named(error: BaseException) -> str:
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
