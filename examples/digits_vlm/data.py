"""Handwritten digits with captions: what every rank reads, the same on each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.datasets import load_digits

from mimo_role import MimoError

CAPTIONS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PIXEL_RANGE = 16.0
HELD_OUT_SHARE = 0.2
NOISE = 0.1
"""Standard deviation of what is added to each pixel (0 to 1) of a training image, anew at every step."""

IGNORED = -100
"""The target where nothing is to be predicted: after a caption's end."""


def cut_into_patches(images: torch.Tensor) -> torch.Tensor:
    """Images `[samples, 8, 8]` as 16 patches of 2x2 pixels, `[samples, 16, 4]`."""
    return images.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3).flatten(1, 2)


def sum_rows_and_columns(images: torch.Tensor) -> torch.Tensor:
    """Images `[samples, 8, 8]` as two vectors, the means of their rows and of their columns, `[samples, 2, 8]`."""
    return torch.stack([images.mean(dim=2), images.mean(dim=1)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Modality:
    """What one encoder sees of a sample."""

    tokens: int
    """How many embeddings it gives the language model for each sample."""
    features: int
    """Numbers per token in the raw input."""
    read: Callable[[torch.Tensor], torch.Tensor]
    """From images `[samples, 8, 8]` to raw input `[samples, tokens, features]`."""


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
    """The special token that stands where the modality's embeddings go."""
    return TOKEN_IDS[f"<{modality}>"]


def sequence_tokens(modalities: Sequence[str]) -> int:
    """The length of the language model's input."""
    return sum(MODALITIES[name].tokens for name in modalities) + CAPTION_TOKENS


def caption_of(targets: torch.Tensor) -> str:
    """The text of one row of targets or predictions, up to its end."""
    tokens = [VOCABULARY[number] for number in targets.tolist() if number != IGNORED]
    return "".join(tokens[: tokens.index(END)] if END in tokens else tokens)


@dataclass(frozen=True)
class Batch:
    """Samples with everything that any module needs of them."""

    inputs: dict[str, torch.Tensor]
    """Each modality's raw input, `[samples, tokens, features]`."""
    tokens: torch.Tensor
    """The language model's input, `[samples, length]`: placeholders, `<begin>`, the caption's letters."""
    targets: torch.Tensor
    """What the last `CAPTION_TOKENS` positions predict, `[samples, CAPTION_TOKENS]`."""
    predictions_in_whole: int
    """How many tokens are to be predicted in the global batch that this is part of."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, samples: torch.Tensor | slice) -> "Batch":
        """Some of its samples, in the order given."""
        inputs = {name: values[samples] for name, values in self.inputs.items()}
        return replace(self, inputs=inputs, tokens=self.tokens[samples], targets=self.targets[samples])

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        return replace(self, inputs=inputs, tokens=self.tokens.to(device), targets=self.targets.to(device))

    def split(self, parts: int) -> list["Batch"]:
        """Contiguous parts whose sizes differ by at most one."""
        return [self.take(part) for part in torch.arange(len(self)).tensor_split(parts)]


class Digits:
    """The 1,797 images of scikit-learn's digits in two fixed parts, for training and held out."""

    def __init__(self, modalities: Sequence[str], dtype: torch.dtype, device: torch.device) -> None:
        """
        Raises:
            MimoError: a modality that these samples do not have.
        """
        for name in modalities:
            if name not in MODALITIES:
                raise MimoError(f"modules.{name}: this example has no such encoder; it has {', '.join(MODALITIES)}")
        found = load_digits()
        self._modalities = modalities
        self._device = device
        self._images = torch.tensor(found.images / PIXEL_RANGE, dtype=dtype)
        tokens, targets = zip(*(_sequence(int(label), modalities) for label in found.target), strict=True)
        self._tokens, self._targets = torch.tensor(tokens), torch.tensor(targets)
        order = torch.randperm(len(self._images), generator=torch.Generator().manual_seed(0))
        held_out_count = round(len(order) * HELD_OUT_SHARE)
        self.held_out_samples, self.training_samples = order[:held_out_count], order[held_out_count:]

    def held_out(self) -> Batch:
        """All held-out samples."""
        return self._collect(self.held_out_samples, self._images[self.held_out_samples])

    def batch(self, seed: int, step: int, size: int) -> Batch:
        """The global batch of a step; every rank draws the same one."""
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = self.training_samples[torch.randperm(len(self.training_samples), generator=generator)[:size]]
        images = self._images[drawn]
        return self._collect(drawn, images + NOISE * torch.randn(images.shape, generator=generator, dtype=images.dtype))

    def _collect(self, samples: torch.Tensor, images: torch.Tensor) -> Batch:
        inputs = {name: MODALITIES[name].read(images) for name in self._modalities}
        targets = self._targets[samples]
        return Batch(inputs, self._tokens[samples], targets, int((targets != IGNORED).sum())).to(self._device)


def _sequence(label: int, modalities: Sequence[str]) -> tuple[list[int], list[int]]:
    placeholders = [placeholder_id(name) for name in modalities for _ in range(MODALITIES[name].tokens)]
    letters = [TOKEN_IDS[letter] for letter in CAPTIONS[label]]
    missing = CAPTION_TOKENS - 1 - len(letters)
    tokens = [*placeholders, TOKEN_IDS[BEGIN], *letters, *[TOKEN_IDS[PADDING]] * missing]
    return tokens, [*letters, TOKEN_IDS[END], *[IGNORED] * missing]
