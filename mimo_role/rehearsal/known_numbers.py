"""Small tensors of integers that one rank sends others: shapes, counts, votes and flags, on which scripts decide."""
# mypy: disable-error-code="override"

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import BroadcastOptions
from torch._subclasses.fake_tensor import FakeTensor

from mimo_role.rehearsal.board import Board
from mimo_role.rehearsal.process_group import RehearsalGroup
from mimo_role.rehearsal.traffic import Traffic

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
        if _are_numbers(tensors):
            self._board.put(self._numbered(name), [tensor.tolist() for tensor in tensors])

    def received(self, name: str, tensors: Sequence[torch.Tensor]) -> bool:
        """Fill tensors with what was sent under a name; whether it is known."""
        if not _are_numbers(tensors):
            return True
        found = self._board.get(self._numbered(name))
        if found is None or len(found) != len(tensors):
            return False
        self.known += 1
        for tensor, values in zip(tensors, found, strict=True):
            known = torch.tensor(values, dtype=tensor.dtype)
            if known.numel() == tensor.numel():
                tensor.detach().copy_(known.view(tensor.shape))
        return True

    def _numbered(self, name: str) -> str:
        self._calls[name] += 1
        return f"{name}: {self._calls[name]}"


class InformedGroup(RehearsalGroup):
    """A group in which small integers that another rank has sent in its own rehearsal arrive; all else is as in its base."""

    def __init__(self, rank: int, size: int, traffic: Traffic, numbers: KnownNumbers) -> None:
        super().__init__(rank, size, traffic)
        self._numbers = numbers
        self._bridges = traffic

    def broadcast(self, tensors: Sequence[torch.Tensor], opts: Any = BroadcastOptions()) -> dist.Work:  # noqa: B008
        """The source's numbers, if they are known; other tensors stay as they are."""
        name = f"numbers of {self._global_rank(opts.rootRank)} over {self.group_desc} of {self.size()}"
        if opts.rootRank == self.rank():
            self._numbers.sent(name, tensors)
        else:
            self._numbers.received(name, tensors)
        return super().broadcast(tensors, opts)

    def send(self, tensors: Sequence[torch.Tensor], to: int, tag: int = 0) -> dist.Work:
        """As of any group; the numbers are kept."""
        if self._bridges.bridge is None:
            self._numbers.sent(self._message(self.rank(), to, tag), tensors)
        return super().send(tensors, to, tag)

    def recv(self, tensors: Sequence[torch.Tensor], source: int, tag: int = 0) -> dist.Work:
        """The source's numbers, if they are known; zeros otherwise."""
        done = super().recv(tensors, source, tag)
        if self._bridges.bridge is None and not self._numbers.received(self._message(source, self.rank(), tag), tensors):
            self._numbers.not_known += 1
        return done

    def _message(self, source: int, destination: int, tag: int) -> str:
        return f"numbers from {self._global_rank(source)} to {self._global_rank(destination)}, {self.group_desc}, tag {tag}"

    def _global_rank(self, place: int) -> int:
        return dist.get_global_rank(self, place)


def _are_numbers(tensors: Sequence[torch.Tensor]) -> bool:
    """Whether these are integers or flags, few, and with values."""
    return all(
        not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and tensor.numel() <= _MOST_ELEMENTS
        and not isinstance(tensor, FakeTensor)
        for tensor in tensors
    )
