"""Names of process groups on which all of their members agree.

torch names a group that only its members create after its ranks and the number of groups of this process. A rank that has
created or destroyed one group more than another, by `new_group` of some ranks or `destroy_process_group`, would name the next
group differently and hang; and a group created after others were destroyed could get the name of one of them, and find its
addresses in the store. torch has no public way to set a name, so this file replaces
`torch.distributed.distributed_c10d._process_group_name` while a group is created. It is the only file that does;
`tests/mimo_role/groups/test_groups.py` fails when torch no longer calls that function.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch.distributed import ProcessGroup
from torch.distributed import distributed_c10d as c10d

_series: "WeakKeyDictionary[ProcessGroup, int]" = WeakKeyDictionary()
"""The number of series of groups in a world."""


def next_series(world: ProcessGroup) -> int:
    """A number for groups that all ranks of the world are about to create: the same on all of them, and not used before."""
    _series[world] = _series.get(world, -1) + 1
    return _series[world]


@contextmanager
def named(series: int, number: int) -> Iterator[None]:
    """Name the group created in this block after the series, its number in the series, and its first rank."""
    original = c10d._process_group_name

    def name(ranks: list[int], use_hashed_name: bool) -> c10d.GroupName:  # noqa: ARG001 (torch's keyword)
        return c10d.GroupName(f"mimo_role.{series}.{number}.{min(ranks)}")

    c10d._process_group_name = name
    try:
        yield
    finally:
        c10d._process_group_name = original
