"""Whether the ranks of a group have equal numbers, by one small all-reduce."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist


class Comparison:
    """A comparison that has been started. Collective over the group.

    The tensor has the same length whatever is compared, so that ranks that disagree on everything else still meet in it.
    """

    def __init__(self, numbers: Sequence[int], group: dist.ProcessGroup, device: torch.device, *, failed: bool) -> None:
        """
        Args:
            numbers: from 0 to 2^63 - 1, as many on each rank; see `digest_of`.
            group: whose ranks compare theirs.
            device: for the tensor.
            failed: whether this rank has an error, which the others are informed of.
        """
        values = [int(failed), *numbers, *(-number for number in numbers)]
        self._largest = torch.tensor(values, dtype=torch.int64, device=device)
        self._work = dist.all_reduce(self._largest, dist.ReduceOp.MAX, group=group, async_op=True)

    def result(self) -> tuple[bool, list[bool]]:
        """Whether any rank has failed; for each number, whether all ranks have the same."""
        if self._work is not None:
            self._work.wait()
        failed, *values = self._largest.tolist()
        count = len(values) // 2
        return bool(failed), [values[at] == -values[count + at] for at in range(count)]


def digest_of(parts: Iterable[str]) -> int:
    """63 bits of a hash of texts, the same in all processes."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part.encode() + b"\0")
    return int.from_bytes(state.digest(), "big") >> 1
