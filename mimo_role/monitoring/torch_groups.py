"""The process groups of this process that torch knows of, those of the script among them.

torch has no public list of them. What is private is used in this file only; `tests/mimo_role/monitoring/test_diagnostics.py`
and `tests/launcher/worker/test_children.py` fail when it changes.
"""

import ctypes
import os
from functools import cache


def members() -> dict[str, tuple[int, ...]]:
    """The ranks of each group, by its name; without the world."""
    from torch.distributed.distributed_c10d import _world

    world = _world.default_pg
    return {group.group_name: tuple(ranks) for group, ranks in _world.pg_group_ranks.items() if group is not world}


@cache
def keep_in_forked_children() -> None:
    """Let a process that this one forks end without destroying the groups.

    A group's threads exist in the process that created it only; in a forked child, the destructor waits for them for ever.
    """
    from torch.distributed.distributed_c10d import _world  # not in the child, where the script has perhaps not imported torch

    def keep() -> None:
        for group in _world.pg_group_ranks:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))

    os.register_at_fork(after_in_child=keep)
