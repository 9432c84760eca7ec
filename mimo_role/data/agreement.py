"""A comparison of all ranks: do they read the same samples?"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.errors import DataError
from mimo_role.topology.topology import Topology

_SHOWN = 8


def check_same_samples(facts: Mapping[str, Any], topology: Topology, device: torch.device) -> None:
    """Compare what ranks know of a step by one all-reduce of two numbers; gather it only if it differs.

    Collective over the world.

    Args:
        facts: the same names on all ranks, what a difference follows from before what follows.

    Raises:
        DataError: on all ranks, if any two differ.
    """
    digest = int(hashlib.sha256(repr(dict(facts)).encode()).hexdigest()[:15], 16)
    lowest = torch.tensor([digest, -digest], dtype=torch.int64, device=device)
    dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
    low, high = lowest.tolist()
    if low == -high:
        return
    everyone: list[dict[str, Any]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, dict(facts))
    raise DataError(describe_difference(everyone, topology))


def describe_difference(everyone: Sequence[Mapping[str, Any]], topology: Topology) -> str:
    """Which ranks differ from most of the others, in the first thing in which any do."""
    name = next(name for name in everyone[0] if len({repr(facts.get(name)) for facts in everyone}) > 1)
    values = [facts.get(name) for facts in everyone]
    usual, count = Counter(values).most_common(1)[0]
    odd = [f"rank {rank} ({topology.label_of(rank)}) has {value!r}" for rank, value in enumerate(values) if value != usual]
    shown = odd[:_SHOWN] + ([f"and {len(odd) - _SHOWN} more ranks differ"] if len(odd) > _SHOWN else [])
    step = Counter(facts.get("step") for facts in everyone).most_common(1)[0][0]
    return (
        f"step {step}: ranks read different samples. {name} is {usual!r} on {count} of {len(values)} ranks, but "
        f"{', '.join(shown)}. All ranks take equal samplers over equally long datasets, and each step of the data loader"
    )
