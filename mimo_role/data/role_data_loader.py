"""The micro-batches of each step, as one rank needs them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader

from mimo_role.context import RoleContext
from mimo_role.data.agreement import check_same_samples
from mimo_role.data.global_batch import GlobalBatch, GlobalBatchSampler, Position
from mimo_role.data.lane_reads import AssignLanes, LaneReads, Needs
from mimo_role.data.micro_batch import MicroBatch
from mimo_role.data.sample_reader import Collate, ReadRequest, SampleReader, WorkerStart, unchanged
from mimo_role.errors import DataError
from mimo_role.training.seeding import seed_of

_OPTIONS = ("num_workers", "prefetch_factor", "persistent_workers", "pin_memory", "timeout", "multiprocessing_context")


class RoleDataLoader:
    """Reads each step's samples on the ranks that need them, the same order in any layout.

    Every rank of the job makes one with an equal sampler. Iterating yields the steps from the current position to the end of
    the epoch, each a list of `MicroBatch` for `Schedule1F1B.step`; the next iterator is of the next epoch. `len()` is the
    number of steps that an iterator yields.

    A step counts as consumed once it has been yielded. `state_dict()` and `load_state_dict()` are those of a
    `torch.distributed.checkpoint` `Stateful`; see docs/guides/data.md.
    """

    def __init__(
        self,
        ctx: RoleContext,
        dataset: Any,
        sampler: GlobalBatchSampler,
        *,
        collate_fn: Collate | Mapping[str, Collate] | None = None,
        needs: Needs | None = None,
        assign_lanes: AssignLanes | None = None,
        seed_samples: bool = True,
        check_every: int = 100,
        worker_init_fn: Callable[[int], None] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            ctx: this rank's.
            dataset: map-style, of `sampler.length` samples; or one for each module that this rank reads samples for, by name.
                A rank does not open what it does not need.
            sampler: equal on all ranks.
            collate_fn: from a list of samples to what `micro[module]` returns; or one for each module, by name. It may get an
                empty list, if a micro-batch has fewer samples than the module has lanes. Default: torch's `default_collate`,
                with tensors `[0, ...]` for no samples, in the form of a sample that is read for that.
            needs: by module, the stages that read samples: numbers (-1 is the last), or `"all"`. Default: the first stage of
                each module, and the last of the language module.
            assign_lanes: by module, `assign(indices, lanes)` returns the lane of each sample of a micro-batch, on all ranks
                alike, as `balanced_lanes` does. Default: `lane_samples`.
            seed_samples: whether Python's, NumPy's and torch's CPU generators are seeded before each sample, by the sampler's
                seed, the epoch and the index, and before each collation. Then the ranks of a lane, and all modules, see the
                same random augmentation, whatever the number of workers.
            check_every: all ranks compare their samples in the first step of each iterator and every `check_every` steps after
                it, collectively over the world; 0 means never.
            worker_init_fn: called in each worker, which ignores preemption notices (`shield_worker`).
            options: of `torch.utils.data.DataLoader`: `num_workers`, `prefetch_factor` (in micro-batches), `pin_memory`,
                `persistent_workers`, `timeout`, `multiprocessing_context`.

        Raises:
            DataError: a dataset of another length, or none for a module that this rank reads; a module or stage that does not
                exist; another option.
        """
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise DataError(f"no option {unknown[0]!r} of a data loader over roles; there are {', '.join(_OPTIONS)}")
        if check_every < 0:
            raise DataError(f"check_every={check_every}; use a number of steps, or 0 for no comparison")
        self._ctx = ctx
        self._sampler = sampler
        self._check_every = check_every
        self._reads = LaneReads(ctx.topology, ctx.rank, needs, assign_lanes)
        self._position = Position()
        self._newest_iterator = 0
        self._loader: DataLoader[dict[str, Any]] | None = None
        if self._reads.modules:
            self._loader = DataLoader(
                self._make_reader(dataset, collate_fn, seeds_samples=seed_samples),
                batch_size=None,
                sampler=_Requests(self._requests),
                collate_fn=unchanged,
                worker_init_fn=WorkerStart(worker_init_fn),
                # Of its own: torch's default generator is the model's, and only some ranks read.
                generator=torch.Generator().manual_seed(seed_of(sampler.seed, "workers", "base seed")),
                **options,
            )

    @property
    def epoch(self) -> int:
        """The epoch of the next step, from 0."""
        return self._position.epoch

    def __len__(self) -> int:
        return self._sampler.steps_from(self._position)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        self._newest_iterator += 1
        return self._steps(self._newest_iterator)

    def state_dict(self) -> dict[str, Any]:
        """What has been consumed, as numbers and text, equal on all ranks. It does not depend on the layout."""
        return self._sampler.state_dict(self._position)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the sample after the last one consumed. The sizes of steps and the number of workers may differ.

        Raises:
            DataError: a state of another dataset length, seed or shuffling, or malformed.
        """
        self._position = self._sampler.position_in(state_dict)
        self._newest_iterator += 1

    def _make_reader(
        self, dataset: Any, collate_fn: Collate | Mapping[str, Collate] | None, *, seeds_samples: bool
    ) -> SampleReader:
        modules = self._reads.modules
        datasets = {module: _of_module("dataset", dataset, module) for module in modules}
        for module, own in datasets.items():
            _check_length(module, own, self._sampler.length)
        collate = {module: _of_module("collate_fn", collate_fn, module) for module in modules}
        return SampleReader(datasets, collate, self._sampler.seed, seeds_samples=seeds_samples)

    def _steps(self, iterator: int) -> Iterator[list[MicroBatch]]:
        self._check_newest(iterator)
        read = None if self._loader is None else iter(self._loader)
        for count, batch in enumerate(self._sampler.batches(self._position)):
            self._check_newest(iterator)
            if self._check_every and count % self._check_every == 0:
                self._compare_ranks(batch)
            micro_batches = [
                self._micro_batch(batch, number, {} if read is None else next(read))
                for number in range(len(batch.micro_batches))
            ]
            self._position = batch.following
            yield micro_batches

    def _micro_batch(self, batch: GlobalBatch, number: int, data: dict[str, Any]) -> MicroBatch:
        indices = batch.micro_batches[number]
        return MicroBatch(
            epoch=batch.position.epoch,
            step=batch.position.steps,
            number=number,
            indices=indices,
            samples_in_step=batch.samples,
            lanes=self._reads.assigned_lanes(indices),
            data=data,
        )

    def _requests(self) -> Iterator[ReadRequest]:
        """This rank's reads from the current position on; workers are ahead of what has been yielded."""
        for batch in self._sampler.batches(self._position):
            for indices in batch.micro_batches:
                own = self._reads.of(indices, self._reads.assigned_lanes(indices))
                yield ReadRequest(batch.position.epoch, own, indices[0])

    def _compare_ranks(self, batch: GlobalBatch) -> None:
        lanes = [sorted(self._reads.assigned_lanes(indices).items()) for indices in batch.micro_batches]
        sampler = self._sampler
        facts = {
            "length": sampler.length,
            "seed": sampler.seed,
            "shuffle": sampler.shuffle,
            "global_batch_size": sampler.global_batch_size,
            "micro_batches": sampler.micro_batches,
            "drop_last": sampler.drop_last,
            "check_every": self._check_every,
            "step": batch.position.steps,
            "epoch": batch.position.epoch,
            "samples consumed": batch.position.samples,
            "digest of the indices": _digest(batch.micro_batches),
            "digest of assign_lanes": _digest(lanes),
        }
        check_same_samples(facts, self._ctx.topology, self._ctx.device)

    def _check_newest(self, iterator: int) -> None:
        """
        Raises:
            DataError: the position is no longer this iterator's.
        """
        if iterator != self._newest_iterator:
            raise DataError("the data loader has a newer iterator or has loaded a state; iterate over it anew")


class _Requests:
    """A sampler of a `DataLoader`: each iterator starts at the position at that time."""

    def __init__(self, make: Callable[[], Iterator[ReadRequest]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[ReadRequest]:
        return self._make()


def _of_module(argument: str, value: Any, module: str) -> Any:
    """A module's entry of an argument that is one for all modules, or one for each."""
    if not isinstance(value, Mapping):
        return value
    if module not in value:
        raise DataError(f"{argument} has none for {module!r}, which this rank reads samples for; it has {', '.join(value)}")
    return value[module]


def _check_length(module: str, dataset: Any, length: int) -> None:
    if not isinstance(dataset, Sized):
        raise DataError(
            f"the dataset of {module!r} has no length: {type(dataset).__name__}. Iterable datasets are not read by role; use a "
            "map-style dataset, with __getitem__ and __len__"
        )
    if len(dataset) != length:
        raise DataError(f"the dataset of {module!r} has {len(dataset)} samples, but the sampler has length={length}")


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
