"""The numbers of tokens of a step's samples, which only the ranks that read the samples know."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from mimo_role.context import RoleContext
from mimo_role.data.micro_batch import MicroBatch
from mimo_role.errors import DataError
from mimo_role.resharding.samples import lane_samples

Sizes = Mapping[str, Sequence[Sequence[int]]]
"""By module and micro-batch: the number of tokens of each sample of a rank's lane."""


class SampleSizes:
    """The sizes of all samples of a step, on every rank: `sizes["vision"][micro.number]`."""

    def __init__(self, names: Sequence[str], micro_batches: Sequence[MicroBatch], found: torch.Tensor, work: dist.Work) -> None:
        """
        Args:
            names: the modules.
            micro_batches: of the step.
            found: int64 `[modules, samples of the step]`, one more than each size, once `work` is done.
            work: the sum over all ranks.
        """
        self._names = list(names)
        self._counts = [len(micro) for micro in micro_batches]
        self._step = micro_batches[0].step if micro_batches else 0
        self._found = found
        self._work: dist.Work | None = work
        self._rows: list[list[int]] = []
        self._sizes: dict[str, list[tuple[int, ...]]] = {}

    def __getitem__(self, module: str) -> list[tuple[int, ...]]:
        """A module's tokens of each sample, by micro-batch, for `Samples(len(micro), tokens=sizes[module][micro.number])`.

        The first call waits for the other ranks.

        Raises:
            DataError: the module's sizes are not exchanged, or no rank has given those of a sample.
        """
        if module not in self._names:
            raise DataError(f"the sizes of {module!r} are not exchanged, only those of: {', '.join(self._names)}")
        if self._work is not None:
            self._work.wait()
            self._work, self._rows = None, self._found.tolist()
        if module not in self._sizes:
            self._sizes[module] = self._checked(module, self._rows[self._names.index(module)])
        return self._sizes[module]

    def _checked(self, name: str, row: Sequence[int]) -> list[tuple[int, ...]]:
        found, first = [], 0
        for number, count in enumerate(self._counts):
            of_one = row[first : first + count]
            if missing := [sample for sample, size in enumerate(of_one) if size == 0]:
                raise DataError(
                    f"step {self._step}, micro-batch {number}: no rank has given the size of sample {missing[0]} of {name!r}; "
                    "the ranks of a module's first stage pass those of their lane's samples"
                )
            found.append(tuple(size - 1 for size in of_one))
            first += count
        return found


def exchange_sizes(
    ctx: RoleContext, modules: Sequence[str], micro_batches: Sequence[MicroBatch], own: Sizes | None = None
) -> SampleSizes:
    """Begin to exchange the sizes of a step's samples, by one all-reduce that runs beside other work.

    Collective over the world, once per step. For activations whose number of tokens follows from the data, such as images of
    any size.

    Args:
        ctx: this rank's.
        modules: those whose sizes are exchanged, the same on all ranks.
        micro_batches: of the step, as `RoleDataLoader` gives them.
        own: on the ranks of a module's first stage, the number of tokens of each sample of their lane, by module and
            micro-batch.

    Raises:
        DataError: this rank gives other sizes than those of its lane's samples.
    """
    counts = [len(micro) for micro in micro_batches]
    mine = torch.zeros(len(modules), sum(counts), dtype=torch.int64)
    for row, module in enumerate(modules):
        if ctx.role.is_first_stage(module):
            _fill(ctx, module, micro_batches, (own or {}).get(module), mine[row])
    mine = mine.to(ctx.device)
    return SampleSizes(modules, micro_batches, mine, sum_over_ranks(modules, counts, mine))


def sum_over_ranks(modules: Sequence[str], counts: Sequence[int], found: torch.Tensor) -> dist.Work:  # noqa: ARG001
    """Begin to sum what each rank knows. A rehearsal, whose peers do not exist, replaces it.

    Args:
        modules: whose sizes they are.
        counts: samples of each micro-batch.
        found: int64 `[modules, samples of the step]`, summed in place.
    """
    work: dist.Work | None = dist.all_reduce(found, async_op=True)
    assert work is not None
    return work


def _fill(
    ctx: RoleContext,
    module: str,
    micro_batches: Sequence[MicroBatch],
    own: Sequence[Sequence[int]] | None,
    row: torch.Tensor,
) -> None:
    """Write this lane's sizes, on one of its replicas; on the others only check them."""
    if own is None or len(own) != len(micro_batches):
        given = "none" if own is None else str(len(own))
        raise DataError(
            f"{module!r}: pass the sizes of its samples for each of {len(micro_batches)} micro-batches, not {given}"
        )
    coords, (own_lane, lanes) = ctx.coords(module), ctx.lane(module)
    first = 0
    for micro, sizes in zip(micro_batches, own, strict=True):
        if module in micro.lanes:
            places = [place for place, lane in enumerate(micro.lanes[module]) if lane == own_lane]
        else:
            places = list(lane_samples(len(micro), lanes, own_lane))
        if len(sizes) != len(places) or any(size < 0 for size in sizes):
            raise DataError(
                f"{module!r}, micro-batch {micro.number}: {list(sizes)} are not the sizes of this lane's {len(places)} samples"
            )
        if coords["tp"] == coords["cp"] == 0:
            for place, size in zip(places, sizes, strict=True):
                row[first + place] = size + 1
        first += len(micro)
