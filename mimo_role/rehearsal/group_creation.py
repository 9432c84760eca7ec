"""The creation of groups by a script, in which all ranks of the world take part."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch.distributed as dist

from mimo_role.rehearsal.call_log import CallLog, progressions


def recorded_new_group(new_group: Callable[..., Any], calls: CallLog) -> Callable[..., Any]:
    """What replaces `torch.distributed.new_group`: its calls are recorded as operations over the world.

    torch numbers groups in the order of these calls, unless they have `use_local_synchronization`: a rank that leaves one out,
    even of a group that it is not in, has other names for all later groups.
    """

    @wraps(new_group)
    def recorded(ranks: Sequence[int] | None = None, *rest: Any, **settings: Any) -> Any:
        world = dist.group.WORLD
        if world is not None and not settings.get("use_local_synchronization"):
            calls.add(world, f"new_group({_described(ranks)})")
        return new_group(ranks, *rest, **settings)

    return recorded


def _described(ranks: Sequence[int] | None) -> str:
    if ranks is None:
        return "all ranks"
    runs = progressions(sorted(ranks))
    shown = ", ".join(_run(*run) for run in runs[:4])
    return f"ranks {shown}" + (f" and others, {len(ranks):,} in all" if len(runs) > 4 else "")


def _run(start: int, stop: int, step: int) -> str:
    last = stop - 1
    return f"{start}" if start == last else f"{start}-{last}" if step == 1 else f"{start}-{last} in steps of {step}"
