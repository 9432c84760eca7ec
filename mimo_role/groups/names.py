"""Names of process groups on which all of their members agree.

torch names a group that only its members create after its ranks and the number of groups of this process. A rank that has
created or destroyed one group more than another, by `new_group` of some ranks or `destroy_process_group`, would name the next
group differently and hang; and a group created after others were destroyed could get the name of one of them, and find its
addresses in the store. torch has no public way to set a name, so this file replaces
`torch.distributed.distributed_c10d._process_group_name` while a group is created. And a rank that is in none of the groups
that others create counts one as well, so that all name the script's groups alike. It is the only file that does so;
`tests/mimo_role/groups/test_groups.py` fails when torch no longer uses these names.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from weakref import WeakKeyDictionary

from torch.distributed import ProcessGroup
from torch.distributed import distributed_c10d as c10d

_series: "WeakKeyDictionary[ProcessGroup, int]" = WeakKeyDictionary()
"""The number of series of groups in a world."""

_named_by_ranks: "WeakKeyDictionary[ProcessGroup, Counter[str]]" = WeakKeyDictionary()
"""How many groups of a world's ranks have been named after these ranks."""


def next_series(world: ProcessGroup) -> int:
    """A number for groups that all ranks of the world are about to create: the same on all of them, and not used before."""
    _series[world] = _series.get(world, -1) + 1
    return _series[world]


def named(series: int, number: int) -> AbstractContextManager[None]:
    """Name the group created in this block after the series, its number in the series, and its first rank."""
    return _naming(lambda ranks: f"mimo_role.{series}.{number}.{min(ranks)}")


def named_alone(series: int) -> AbstractContextManager[None]:
    """Name the group of one rank created in this block after the series and the rank."""
    return _naming(lambda ranks: f"mimo_role.{series}.self.{min(ranks)}")


def named_by_ranks(world: ProcessGroup) -> AbstractContextManager[None]:
    """Name the group created in this block after its ranks, and the number of groups of these ranks that were named so."""

    def name(ranks: list[int]) -> str:
        members = ",".join(map(str, sorted(ranks)))
        counts = _named_by_ranks.setdefault(world, Counter())
        counts[members] += 1
        return f"mimo_role.ranks.{hashlib.sha256(members.encode()).hexdigest()}.{counts[members]}"

    return _naming(name)


@contextmanager
def _naming(name_of: Callable[[list[int]], str]) -> Iterator[None]:
    original = c10d._process_group_name

    def name(ranks: list[int], use_hashed_name: bool) -> c10d.GroupName:  # noqa: ARG001 (torch's keyword)
        return c10d.GroupName(name_of(ranks))

    c10d._process_group_name = name
    try:
        yield
    finally:
        c10d._process_group_name = original


class CountedGroup:
    """Counts as a group of this process when torch names a group that a script creates; it has no ranks.

    torch shuts down, or aborts, all that it has named when the world is destroyed.
    """

    def __init__(self) -> None:
        c10d._world.pg_names[self] = c10d.GroupName(f"mimo_role.{id(self)}")  # type: ignore[index]

    def shutdown(self) -> None:
        """There is nothing to shut down."""

    def abort(self) -> None:
        """There is nothing to abort."""

    def free(self) -> None:
        """Count no longer."""
        c10d._world.pg_names.pop(self, None)  # type: ignore[call-overload]
