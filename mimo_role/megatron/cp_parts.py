"""Whole sequences on each context-parallel rank, of which a bridge delivers one part to each."""

from functools import lru_cache, partial

import torch
import torch.distributed as dist

from mimo_role.bridge.activation_spec import ActivationSpec
from mimo_role.resharding.endpoint import Endpoint, Place, Side
from mimo_role.resharding.samples import Samples


class CpParts:
    """Collects the parts of a lane's samples from its cp ranks, and adds up their gradients.

    A model that divides the sequence by itself, as Megatron-Core's `MimoModel` does, takes all tokens on each cp rank. The
    gradient there is a part of the sum: zeros for the tokens of other cp ranks.
    """

    def __init__(self, endpoint: Endpoint, place: Place, group: dist.ProcessGroup) -> None:
        """
        Args:
            endpoint: the receiving end.
            place: this rank's.
            group: its cp ranks.
        """
        self._place = place
        self._group = group
        self._rows = lru_cache(maxsize=64)(partial(rows_by_cp, endpoint, place))

    def whole(self, part: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """All tokens of the lane: `[tokens, *]`, or dense `[samples, tokens, *]`, from this rank's part. Collective over cp."""
        rows = self._rows(spec.samples)
        total = sum(map(len, rows))
        if total == 0:
            return part
        longest = max(map(len, rows))
        mine = part.flatten(0, 1) if spec.is_dense else part
        padded = mine.new_zeros(longest, *mine.shape[1:])
        padded[: len(mine)] = mine
        gathered = mine.new_empty(longest * len(rows), *mine.shape[1:])
        dist.all_gather_into_tensor(gathered, padded, group=self._group)
        places = torch.empty(total, dtype=torch.int64)
        for cp, of_one in enumerate(rows):
            places[of_one] = torch.arange(len(of_one)) + cp * longest
        found = gathered[places.to(part.device)]
        return found.view(part.shape[0], -1, *part.shape[2:]) if spec.is_dense else found

    def own_sum(self, gradient: torch.Tensor, spec: ActivationSpec) -> torch.Tensor:
        """This rank's part of the sum of gradients of all tokens, in the form of `whole`. Collective over cp."""
        rows = self._rows(spec.samples)
        if not any(map(len, rows)):
            return gradient
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self._group)
        own = rows[self._place.cp].to(total.device)
        return total.flatten(0, 1)[own].view(total.shape[0], -1, *total.shape[2:]) if spec.is_dense else total[own]


def rows_by_cp(endpoint: Endpoint, place: Place, samples: Samples) -> list[torch.Tensor]:
    """For each cp rank of a lane its rows, ascending, among all tokens of the lane's samples, which lie behind each other.

    Args:
        endpoint: a receiving end.
        place: a rank of the lane.
        samples: of a batch.
    """
    side = Side(endpoint, samples, is_source=False)
    found = []
    for cp in range(endpoint.cp):
        first, rows = 0, [torch.arange(0)]
        for sample in side.of_lane(place.lane):
            rows += [torch.arange(run.start, run.stop) + first for run in side.tokens(sample, place._replace(cp=cp))]
            first += samples.tokens_of(sample)
        found.append(torch.cat(rows))
    return found
