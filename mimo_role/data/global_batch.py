"""Which samples each step has: a function of a seed and a position, the same on every rank and in every layout."""

import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from mimo_role.errors import DataError
from mimo_role.resharding.samples import lane_samples
from mimo_role.training.seeding import seed_of

_FINGERPRINT_SAMPLES = 256
"""As many samples from the start of an epoch's order are compared when a state is loaded."""


class Position(NamedTuple):
    """What has been consumed."""

    epoch: int = 0
    """Complete epochs."""
    samples: int = 0
    """Samples of the current epoch."""
    steps: int = 0
    """Steps over all epochs."""


@dataclass(frozen=True)
class GlobalBatch:
    """The samples of one step."""

    position: Position
    """Before the step."""
    micro_batches: tuple[tuple[int, ...], ...]
    """The indices of each micro-batch's samples in the dataset, over all lanes."""
    following: Position
    """After the step."""

    @property
    def samples(self) -> int:
        """Their number over all micro-batches."""
        return sum(map(len, self.micro_batches))


@dataclass(frozen=True, kw_only=True)
class GlobalBatchSampler:
    """The order of samples in each epoch, and how it is divided into steps and micro-batches. Pure arithmetic.

    Nothing in it depends on ranks or lanes. An epoch's order depends on `length`, `shuffle`, `seed` and the epoch's number.
    """

    length: int
    """Samples of the dataset."""
    global_batch_size: int
    """Samples of a step, over all lanes and micro-batches."""
    micro_batches: int = 1
    """Micro-batches of a step. Their sizes differ by at most one sample."""
    shuffle: bool = True
    """Whether each epoch has a random order, by `torch.randperm`, which takes 8 bytes of memory per sample."""
    seed: int = 0
    drop_last: bool = False
    """Whether an epoch's last samples are left out if they are fewer than `global_batch_size`. Otherwise they are a smaller
    step, of `micro_batches` micro-batches or, if there are fewer samples than that, of one sample each."""

    def __post_init__(self) -> None:
        """
        Raises:
            DataError: a number that is not whole or too small, or an epoch without a step.
        """
        for name, least in (("length", 1), ("global_batch_size", 1), ("micro_batches", 1), ("seed", None)):
            object.__setattr__(self, name, _whole(name, getattr(self, name), least))
        for name in ("shuffle", "drop_last"):
            object.__setattr__(self, name, bool(getattr(self, name)))
        if self.micro_batches > self.global_batch_size:
            raise DataError(
                f"micro_batches={self.micro_batches}: a step of global_batch_size={self.global_batch_size} samples has at most "
                "as many micro-batches"
            )
        if self.drop_last and self.length < self.global_batch_size:
            raise DataError(
                f"global_batch_size={self.global_batch_size}: with drop_last=True, a dataset of {self.length} samples has no "
                "step"
            )

    def steps_from(self, position: Position) -> int:
        """The number of steps from a position to the end of its epoch."""
        left = self.length - position.samples
        return left // self.global_batch_size if self.drop_last else -(-left // self.global_batch_size)

    def batches(self, position: Position) -> Iterator[GlobalBatch]:
        """The steps from a position to the end of its epoch."""
        order = self._order(position.epoch)
        for _ in range(self.steps_from(position)):
            stop = min(position.samples + self.global_batch_size, self.length)
            following = self._settled(Position(position.epoch, stop, position.steps + 1))
            yield GlobalBatch(position, self._divide(order, position.samples, stop), following)
            position = following

    def state_dict(self, position: Position) -> dict[str, Any]:
        """A position, with what it depends on: numbers and text."""
        return {
            **position._asdict(),
            "length": self.length,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "order": self._fingerprint(position.epoch),
        }

    def position_in(self, state: Mapping[str, Any]) -> Position:
        """The position in a `state_dict`, of a sampler whose sizes of steps may be others.

        Raises:
            DataError: a malformed state, or one of another order of samples.
        """
        if missing := self.state_dict(Position()).keys() - state.keys():
            raise DataError(f"the data loader's state has no {', '.join(sorted(missing))}")
        for name in ("length", "shuffle", "seed"):
            if state[name] != getattr(self, name):
                raise DataError(
                    f"the data loader's state is of {name}={state[name]!r}, but the sampler has {getattr(self, name)!r}: the "
                    f"samples would have another order. Use {name}={state[name]!r}, or do not load the state"
                )
        position = Position(*(_whole(f"the data loader's state: {name}", state[name], 0) for name in Position._fields))
        if position.samples > self.length:
            raise DataError(f"the data loader's state: samples={position.samples} of a dataset of {self.length}")
        if state["order"] != self._fingerprint(position.epoch):
            raise DataError(
                "this release of torch shuffles in another order than the one that the data loader's state is from; finish the "
                "epoch with that release, or do not load the state"
            )
        return self._settled(position)

    def _settled(self, position: Position) -> Position:
        """The same position; at the end of an epoch, the start of the next."""
        return position if self.steps_from(position) else Position(position.epoch + 1, 0, position.steps)

    def _divide(self, order: Sequence[int] | torch.Tensor, start: int, stop: int) -> tuple[tuple[int, ...], ...]:
        samples = _indices(order, start, stop)
        parts = min(self.micro_batches, len(samples))
        ranges = (lane_samples(len(samples), parts, part) for part in range(parts))
        return tuple(samples[part.start : part.stop] for part in ranges)

    def _order(self, epoch: int) -> Sequence[int] | torch.Tensor:
        return _shuffled(self.length, self.seed, epoch) if self.shuffle else range(self.length)

    def _fingerprint(self, epoch: int) -> str:
        first = _indices(self._order(epoch), 0, min(_FINGERPRINT_SAMPLES, self.length))
        return hashlib.sha256(repr(first).encode()).hexdigest()[:16]


# The order of the epoch that is read, and of the one before it, which a peer's state may be of.
@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, epoch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed_of(seed, f"epoch{epoch}", "order of samples"))
    return torch.randperm(length, generator=generator)


def _indices(order: Sequence[int] | torch.Tensor, start: int, stop: int) -> tuple[int, ...]:
    part = order[start:stop]
    return tuple(part.tolist() if isinstance(part, torch.Tensor) else part)


def _whole(name: str, value: Any, least: int | None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DataError(f"{name}={value!r} is not a whole number") from None
    if least is not None and number < least:
        raise DataError(f"{name}={number}; use {least} or more")
    return number
