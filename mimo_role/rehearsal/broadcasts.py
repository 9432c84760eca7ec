"""Small tensors that ranks broadcast: how many batches there are, or whether to stop, decides what all ranks do next."""

from collections import Counter
from collections.abc import Sequence

import torch

from mimo_role.rehearsal.board import Board
from mimo_role.rehearsal.known_numbers import are_numbers
from mimo_role.rehearsal.traffic import Runs

_LARGEST = 64
"""Elements of a tensor that is kept for ranks that are rehearsed later, if it has fractions."""


_UNNAMED = "undefined"
"""torch's description of a group that was created without one."""


class Broadcasts:
    """Gives a rank what the root of its group has sent, or where that has not been rehearsed, the root of an alike group."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._calls: Counter[tuple[str, Runs]] = Counter()

    def send(self, group: str, ranks: Runs, root: int, tensors: Sequence[torch.Tensor]) -> None:
        """Keep what this rank broadcasts.

        Args:
            group: the group's description, the same on ranks of other lanes.
            ranks: its ranks.
            root: this rank, of the world.
            tensors: any tensors; large ones and those without values are not kept.
        """
        common, own = self._names(group, ranks, root)
        if _are_small(tensors):
            content = [(tuple(tensor.shape), tensor.tolist()) for tensor in tensors]
            self._board.put(own, content)
            if common is not None and self._board.get(common) is None:
                self._board.put(common, content)

    def receive(self, group: str, ranks: Runs, root: int, tensors: Sequence[torch.Tensor]) -> None:
        """Fill tensors with what was broadcast; those that nobody has sent yet stay as they are."""
        common, own = self._names(group, ranks, root)
        if not _are_small(tensors):
            return
        content = self._board.get(own) or (() if common is None else self._board.get(common, ()))
        for tensor, (shape, values) in zip(tensors, content, strict=False):
            if tensor.shape == shape and tensor.tolist() != values:
                tensor.detach().copy_(torch.tensor(values, dtype=tensor.dtype))

    def _names(self, group: str, ranks: Runs, root: int) -> tuple[str | None, str]:
        """The names of what roots of alike groups send, if the group has a description, and of what this one's root sends."""
        self._calls[group, ranks] += 1
        size = sum(len(range(*run)) for run in ranks)
        common = f"tensors broadcast over {group} of {size}: {self._calls[group, ranks]}"
        return None if group == _UNNAMED else common, f"{common} from {root}, {ranks}"


def _are_small(tensors: Sequence[torch.Tensor]) -> bool:
    # A tensor of another class has no values, as a fake one, or is a parameter.
    return all(type(tensor) is torch.Tensor and (tensor.numel() <= _LARGEST or are_numbers([tensor])) for tensor in tensors)
