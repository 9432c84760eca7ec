"""Small tensors of integers that one rank sends another: shapes, counts, votes and flags, on which scripts decide."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensor

from mimo_role.rehearsal.board import Board

_MOST_ELEMENTS = 1024


class KnownNumbers:
    """What ranks of a rehearsal have sent, by sender, receiver and number of the call."""

    def __init__(self, board: Board) -> None:
        self.not_known = 0
        """Tensors of ranks that have not been rehearsed, in whose place this rank received zeros."""
        self.known = 0
        """Tensors that came from other ranks' rehearsals."""
        self._board = board
        self._calls: Counter[str] = Counter()

    def sent(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Keep what this rank sends under a name."""
        if are_numbers(tensors):
            self._board.put(self._numbered(name), [tensor.tolist() for tensor in tensors])

    def received(self, name: str, tensors: Sequence[torch.Tensor]) -> None:
        """Fill tensors with what was sent under a name, if it is known; count it."""
        if not are_numbers(tensors):
            return
        found = self._board.get(self._numbered(name))
        if found is None or len(found) != len(tensors):
            self.not_known += 1
            return
        self.known += 1
        for tensor, values in zip(tensors, found, strict=True):
            known = torch.tensor(values, dtype=tensor.dtype)
            if known.numel() == tensor.numel():
                tensor.detach().copy_(known.view(tensor.shape))

    def _numbered(self, name: str) -> str:
        self._calls[name] += 1
        return f"{name}: {self._calls[name]}"


def are_numbers(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are integers or flags, few, and with values."""
    return all(
        not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and tensor.numel() <= _MOST_ELEMENTS
        and not isinstance(tensor, FakeTensor)
        for tensor in tensors
    )
