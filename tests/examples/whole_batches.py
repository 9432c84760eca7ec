"""The samples of examples/digits_vlm in one process."""

from collections.abc import Iterator
from itertools import chain, count
from typing import Any

from data import Digits

from mimo_role.data.global_batch import Position
from mimo_role.data.sample_reader import ReadRequest, SampleReader


def whole_batches(digits: Digits, batch_size: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """What one process trains on at each step: by module, the whole batch. No end."""
    sampler = digits.training_sampler(batch_size=batch_size, micro_batches=1, seed=seed)
    reader = SampleReader(digits.training, dict.fromkeys(digits.training), seed, seeds_samples=True)
    for batch in chain.from_iterable(sampler.batches(Position(epoch)) for epoch in count()):
        (indices,) = batch.micro_batches
        yield reader[ReadRequest(batch.position.epoch, dict.fromkeys(digits.training, indices), indices[0])]
