"""Reads and collates the samples of one rank's lanes, in the rank's process or in a worker of a data loader."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, default_collate

from mimo_role.preemption.notice import shield_worker
from mimo_role.training.seeding import seed_of

try:
    import numpy as np
except ImportError:
    np = None  # type: ignore[assignment]

Collate = Callable[[list[Any]], Any]


class ReadRequest(NamedTuple):
    """What a rank reads of one micro-batch."""

    epoch: int
    indices: Mapping[str, Sequence[int]]
    """By module, the samples of the rank's lane."""
    example: int
    """A sample of the micro-batch, whose form a lane without samples takes."""


class SampleReader(Dataset[dict[str, Any]]):
    """A map-style dataset whose items are what a rank reads of a micro-batch: by module, its lane's samples, collated."""

    def __init__(
        self, datasets: Mapping[str, Any], collate: Mapping[str, Collate | None], seed: int, *, seeds_samples: bool
    ) -> None:
        self._datasets = dict(datasets)
        self._collate = dict(collate)
        self._seed = seed
        self._seeds_samples = seeds_samples

    def __getitem__(self, request: ReadRequest) -> dict[str, Any]:
        with _kept_generators() if self._seeds_samples else _as_they_are():
            read: dict[tuple[int, int], Any] = {}
            samples = {
                module: [self._read(module, index, request.epoch, read) for index in indices]
                for module, indices in request.indices.items()
            }
            return {module: self._collated(module, own, request, read) for module, own in samples.items()}

    def _read(self, module: str, index: int, epoch: int, read: dict[tuple[int, int], Any]) -> Any:
        """A sample. One that several modules of the rank need is read once."""
        dataset = self._datasets[module]
        key = (id(dataset), index)
        if key not in read:
            self._seed_generators(epoch, index, "sample")
            read[key] = dataset[index]
        return read[key]

    def _collated(self, module: str, samples: list[Any], request: ReadRequest, read: dict[tuple[int, int], Any]) -> Any:
        collate = self._collate[module]
        indices = request.indices[module]
        if not samples and collate is None:
            return _without_samples(default_collate([self._read(module, request.example, request.epoch, read)]))
        self._seed_generators(request.epoch, indices[0] if indices else -1, "collate")
        return default_collate(samples) if collate is None else collate(samples)

    def _seed_generators(self, epoch: int, index: int, purpose: str) -> None:
        if not self._seeds_samples:
            return
        stream = f"epoch{epoch}.sample{index}"
        random.seed(seed_of(self._seed, stream, f"{purpose}: python"))
        # torch.manual_seed would seed the generators of GPUs too, from which the rank's modules draw.
        torch.default_generator.manual_seed(seed_of(self._seed, stream, f"{purpose}: torch"))
        if np is not None:
            seed = seed_of(self._seed, stream, f"{purpose}: numpy")
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])


@contextmanager
def _kept_generators() -> Iterator[None]:
    """Python's, NumPy's and torch's CPU generators are afterwards what they were before."""
    kept, numpy_kept = (random.getstate(), torch.get_rng_state()), None if np is None else np.random.get_state()
    try:
        yield
    finally:
        random.setstate(kept[0])
        torch.set_rng_state(kept[1])
        if np is not None:
            np.random.set_state(numpy_kept)


@contextmanager
def _as_they_are() -> Iterator[None]:
    yield


def _without_samples(collated: Any) -> Any:
    """What `default_collate` returned for one sample, for none: tensors `[0, ...]`, and empty lists of text."""
    if isinstance(collated, torch.Tensor):
        return collated[:0]
    if isinstance(collated, Mapping):
        return {key: _without_samples(value) for key, value in collated.items()}
    if isinstance(collated, tuple) and hasattr(collated, "_fields"):
        return type(collated)(*map(_without_samples, collated))
    if isinstance(collated, list | tuple) and not any(isinstance(value, str | bytes) for value in collated):
        return [_without_samples(value) for value in collated]
    return []


@dataclass(frozen=True)
class WorkerStart:
    """What a worker of a data loader does first."""

    script: Callable[[int], None] | None
    """The script's `worker_init_fn`."""

    def __call__(self, worker_id: int) -> None:
        """Ignore the signals by which schedulers announce the end of a job, then what the script wants."""
        shield_worker(worker_id)
        if self.script is not None:
            self.script(worker_id)


def unchanged(read: Any) -> Any:
    """The `collate_fn` of a data loader whose items are complete."""
    return read
