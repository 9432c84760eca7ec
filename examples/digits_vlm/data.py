"""Handwritten digits with captions, by module: what each encoder reads of a sample, and the language model's tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, TensorDataset

from mimo_role import (
    MIMO_LANGUAGE_MODULE_KEY,
    GlobalBatchSampler,
    MicroBatch,
    MimoError,
    RoleContext,
    RoleDataLoader,
)

CAPTIONS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIXEL_RANGE = 16.0
HELD_OUT_SHARE = 0.2
NOISE = 0.1
"""Standard deviation of what is added to each pixel (0 to 1) of a training image, anew in every epoch."""

IGNORED = -100
"""The target where nothing is to be predicted: after a caption's end."""


def cut_into_patches(images: torch.Tensor) -> torch.Tensor:
    """Images `[..., 8, 8]` as 16 patches of 2x2 pixels, `[..., 16, 4]`."""
    return images.unfold(-2, 2, 2).unfold(-2, 2, 2).flatten(-2).flatten(-3, -2)


def sum_rows_and_columns(images: torch.Tensor) -> torch.Tensor:
    """Images `[..., 8, 8]` as two vectors, the means of their rows and of their columns, `[..., 2, 8]`."""
    return torch.stack([images.mean(dim=-1), images.mean(dim=-2)], dim=-2)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What one encoder sees of a sample."""

    tokens: int
    """How many embeddings it gives the language model for each sample."""
    features: int
    """Numbers per token in the raw input."""
    read: Callable[[torch.Tensor], torch.Tensor]
    """From an image `[8, 8]` to raw input `[tokens, features]`."""


MODALITIES = {
    "vision": Modality(tokens=16, features=4, read=cut_into_patches),
    "profile": Modality(tokens=2, features=8, read=sum_rows_and_columns),
}

PADDING, BEGIN, END = "<padding>", "<begin>", "<end>"
VOCABULARY = (PADDING, BEGIN, END, *(f"<{name}>" for name in MODALITIES), *sorted(set("".join(CAPTIONS))))
TOKEN_IDS = {token: number for number, token in enumerate(VOCABULARY)}
CAPTION_TOKENS = max(len(caption) for caption in CAPTIONS) + 1
"""Places to predict: the longest caption and its end."""


def placeholder_id(modality: str) -> int:
    """The special token in whose place the modality's embeddings go."""
    return TOKEN_IDS[f"<{modality}>"]


def sequence_tokens(modalities: Sequence[str]) -> int:
    """The length of the language model's input."""
    return sum(MODALITIES[name].tokens for name in modalities) + CAPTION_TOKENS


class NoisyImages(Dataset[torch.Tensor]):
    """An encoder's raw input `[tokens, features]`, with noise from torch's generator, which the data loader seeds."""

    def __init__(self, images: torch.Tensor, modality: Modality) -> None:
        self._images = images
        self._modality = modality

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> torch.Tensor:
        image = self._images[index]
        return self._modality.read(image + NOISE * torch.randn_like(image))


class Digits:
    """The 1,797 images of scikit-learn's digits in two fixed parts, for training and held out.

    Each part is a dataset for each module. A sample of an encoder's is its raw input, `[tokens, features]`. One of the
    language model's is its input, `[length]`: placeholders, `<begin>`, the caption's letters; and what its last
    `CAPTION_TOKENS` positions predict, `[CAPTION_TOKENS]`.
    """

    def __init__(self, modalities: Sequence[str], dtype: torch.dtype) -> None:
        """
        Raises:
            MimoError: a modality that these samples do not have.
        """
        for name in modalities:
            if name not in MODALITIES:
                raise MimoError(f"modules.{name}: this example has no such encoder; it has {', '.join(MODALITIES)}")
        found = load_digits()
        images = torch.tensor(found.images / PIXEL_RANGE, dtype=dtype)
        tokens, targets = map(torch.tensor, zip(*(_sequence(label, modalities) for label in found.target), strict=True))
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        held_out, training = order.tensor_split([round(len(order) * HELD_OUT_SHARE)])
        self.training: dict[str, Any] = {name: NoisyImages(images[training], MODALITIES[name]) for name in modalities}
        self.held_out: dict[str, Any] = {name: MODALITIES[name].read(images[held_out]) for name in modalities}
        for part, samples in ((self.training, training), (self.held_out, held_out)):
            part[MIMO_LANGUAGE_MODULE_KEY] = TensorDataset(tokens[samples], targets[samples])

    def training_sampler(self, *, batch_size: int, micro_batches: int, seed: int) -> GlobalBatchSampler:
        """Whole batches only: what an epoch has left of its samples is not trained in it.

        Raises:
            MimoError: more samples in a batch than there are.
        """
        length = len(self.training[MIMO_LANGUAGE_MODULE_KEY])
        if batch_size > length:
            raise MimoError(f"--batch-size {batch_size}: there are {length} training samples")
        return GlobalBatchSampler(
            length=length, global_batch_size=batch_size, micro_batches=micro_batches, seed=seed, drop_last=True
        )

    def held_out_batch(self, ctx: RoleContext) -> list[MicroBatch]:
        """All held-out samples, in one micro-batch."""
        length = len(self.held_out[MIMO_LANGUAGE_MODULE_KEY])
        sampler = GlobalBatchSampler(length=length, global_batch_size=length, shuffle=False)
        return next(iter(RoleDataLoader(ctx, self.held_out, sampler)))


def _sequence(label: int, modalities: Sequence[str]) -> tuple[list[int], list[int]]:
    placeholders = [placeholder_id(name) for name in modalities for _ in range(MODALITIES[name].tokens)]
    letters = [TOKEN_IDS[letter] for letter in CAPTIONS[label]]
    missing = CAPTION_TOKENS - 1 - len(letters)
    tokens = [*placeholders, TOKEN_IDS[BEGIN], *letters, *[TOKEN_IDS[PADDING]] * missing]
    return tokens, [*letters, TOKEN_IDS[END], *[IGNORED] * missing]
