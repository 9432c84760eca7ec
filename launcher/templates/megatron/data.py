"""Handwritten digits beside tones: each sample is a picture, a sound of one of ten pitches, and the text that names both."""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch
from sklearn.datasets import load_digits

import mimo_role
from mimo_role import lane_samples

PATCHES, PATCH = 16, 4
"""An 8x8 picture is 16 patches of 2x2 pixels."""
FRAMES, FRAME = 8, 16
"""A sound is 8 frames of 16 samples."""
VISION_TOKEN, AUDIO_TOKEN, ASK, END = 10, 11, 12, 13
"""Beside the digits 0 to 9."""
VOCABULARY = 16
LENGTH = PATCHES + FRAMES + 4
ANSWERS = slice(PATCHES + FRAMES, PATCHES + FRAMES + 2)
"""Where the next token is a digit: of the picture, then of the tone."""


class Samples:
    """All samples; a rank makes only what its modules read."""

    def __init__(self, ctx: mimo_role.RoleContext, options: argparse.Namespace) -> None:
        lanes = max(grid.axis_size("dp") for grid in ctx.topology.grids.values())
        equal = options.micro_batches * (lanes if options.communicator == "megatron" else 1)
        if options.batch_size % equal:
            raise ValueError(f"--batch-size {options.batch_size} is not a multiple of {equal}: equal micro-batches, and lanes")
        pixels, digits = load_digits(return_X_y=True)
        self._pictures = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 4, 2, 4, 2) / 16
        self._digits = torch.tensor(digits)
        self._ctx, self._size = ctx, options.batch_size // options.micro_batches
        self._micro_batches, self._seed = options.micro_batches, options.seed
        module = next(iter(ctx.role.modules))
        self._lane, self._lanes = ctx.lane(module)

    def micro_batches(self, step: int) -> Iterator[dict[str, Any]]:
        """The arguments of `MimoModel.forward` for one step: the same samples for each layout."""
        draw = torch.Generator().manual_seed(1_000_000 * self._seed + step)
        mine = list(lane_samples(self._size, self._lanes, self._lane))
        for _ in range(self._micro_batches):
            chosen = torch.randint(len(self._digits), (self._size,), generator=draw)
            pitches = torch.randint(10, (self._size,), generator=draw)
            yield self._of_this_rank(chosen[mine], pitches[mine])

    def _of_this_rank(self, chosen: torch.Tensor, pitches: torch.Tensor) -> dict[str, Any]:
        role, device = self._ctx.role, self._ctx.device
        if not role.has_language_module:
            make = {"vision": lambda: self._patches(chosen), "audio": lambda: sounds(chosen, pitches)}
            inputs = {name: {"encoder": {"samples": make[name]().to(device)}} for name in role.modality_module_names}
            return {"input_ids": None, "modality_inputs": inputs}
        found: dict[str, Any] = {"input_ids": None}
        if role.is_first_stage("language") or role.is_last_stage("language"):
            text = self._text(self._digits[chosen], pitches).to(device)
            found = {"input_ids": text, "position_ids": torch.arange(LENGTH, device=device).expand_as(text)}
            found["labels"] = text.roll(-1, dims=1)
            found["loss_mask"] = torch.zeros(text.shape, device=device)
            found["loss_mask"][:, ANSWERS] = 1
        return found

    def _patches(self, chosen: torch.Tensor) -> torch.Tensor:
        """`[batch, PATCHES, PATCH]`."""
        return self._pictures[chosen].transpose(2, 3).reshape(len(chosen), PATCHES, PATCH)

    @staticmethod
    def _text(digits: torch.Tensor, pitches: torch.Tensor) -> torch.Tensor:
        """`[batch, LENGTH]`: places for the encoders' outputs, the question, and its two answers."""
        start = torch.tensor([VISION_TOKEN] * PATCHES + [AUDIO_TOKEN] * FRAMES + [ASK]).expand(len(digits), -1)
        return torch.cat([start, digits[:, None], pitches[:, None], torch.full((len(digits), 1), END)], dim=1)


def sounds(chosen: torch.Tensor, pitches: torch.Tensor) -> torch.Tensor:
    """Tones with a phase of their own each, `[batch, FRAMES, FRAME]`."""
    time = torch.arange(FRAMES * FRAME) / (FRAMES * FRAME)
    phases = chosen[:, None] * 0.7
    waves = torch.sin(2 * math.pi * (4 + 5 * pitches[:, None]) * time + phases)
    return waves.reshape(len(chosen), FRAMES, FRAME)
