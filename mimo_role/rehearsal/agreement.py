"""What ranks of other roles contribute to a sum or maximum over the world, taken from those that were rehearsed earlier."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist

from mimo_role.data.sample_reader import ReadRequest
from mimo_role.rehearsal.board import Board

_ASSUMED_SIZE = 1
"""Tokens of a sample that no rehearsed rank has read."""


class Contributions:
    """Replaces the two agreements in which each rank only knows its own part."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._calls = {"sizes": 0, "flags": 0}

    def sum_of_sizes(self, modules: Sequence[str], counts: Sequence[int], found: torch.Tensor) -> dist.Work:
        """Sizes of the samples of all lanes: in a micro-batch of a rehearsal all samples are the same one.

        Args:
            modules: whose sizes they are.
            counts: samples of each micro-batch.
            found: int64 `[modules, samples]`, one more than each size, 0 where this rank does not know it; completed in place.
        """
        self._calls["sizes"] += 1
        bounds = list(pairwise(accumulate(counts, initial=0)))
        for row, module in enumerate(modules):
            name = f"sizes {self._calls['sizes']} {module}"
            known = self._board.get(name, {})
            for number, (start, stop) in enumerate(bounds):
                own = int(found[row, start:stop].max()) if stop > start else 0
                if own:
                    known = {**known, number: own}
                    self._board.put(name, known)
                found[row, start:stop] = known.get(number, _ASSUMED_SIZE + 1)
        work: dist.Work | None = dist.all_reduce(found.clone(), async_op=True)  # counted as that of a real run
        assert work is not None
        return work

    def largest_flags(self, found: torch.Tensor) -> None:
        """Flags of stages: those of this rank's stages, and of the stages that were rehearsed earlier.

        Args:
            found: int32 `[stages]`, completed in place.
        """
        dist.all_reduce(found.clone(), dist.ReduceOp.MAX)  # counted as that of a real run
        self._calls["flags"] += 1
        name = f"flags {self._calls['flags']}"
        known = self._board.get(name)
        if known is not None:
            torch.maximum(found, torch.tensor(known, dtype=found.dtype, device=found.device), out=found)
        self._board.put(name, found.tolist())


def same_samples(request: ReadRequest) -> ReadRequest:
    """A request in which all samples of a micro-batch are its first one, so that all ranks know the sizes of each other's."""
    indices: dict[str, Any] = {module: [request.example] * len(own) for module, own in request.indices.items()}
    return request._replace(indices=indices)
