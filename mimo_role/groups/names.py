"""Names of process groups on which all of their members agree.

torch names a group that only its members make after its ranks and the number of groups that this process has. A rank that has
made or freed one group more than another, as a plain `new_group` of some ranks or a `destroy_process_group` does, would name
the next one differently, and wait for its peers for ever; and a group made after others were freed could come to the name
of one of them, and find its addresses in the store. torch has no public way to give a name, so this file puts a function of its
own in the place of `torch.distributed.distributed_c10d._process_group_name` while a group is made. It is the only file that
does; `tests/mimo_role/groups/test_groups.py` fails when torch no longer asks that function.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch.distributed import ProcessGroup
from torch.distributed import distributed_c10d as c10d

_series: "WeakKeyDictionary[ProcessGroup, int]" = WeakKeyDictionary()
"""How many series of groups have been made in a world."""


def next_series(world: ProcessGroup) -> int:
    """A number for groups that all ranks of the world are about to make, the same on all of them and never given before."""
    _series[world] = _series.get(world, -1) + 1
    return _series[world]


@contextmanager
def named(series: int, number: int) -> Iterator[None]:
    """Name the group made in this block after the series, its number in the series, and its first rank."""
    original = c10d._process_group_name

    def name(ranks: list[int], use_hashed_name: bool) -> c10d.GroupName:  # noqa: ARG001 (torch's keyword)
        return c10d.GroupName(f"mimo_role.{series}.{number}.{min(ranks)}")

    c10d._process_group_name = name
    try:
        yield
    finally:
        c10d._process_group_name = original
