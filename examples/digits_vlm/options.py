"""The command line of train.py."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mimo_role import MimoError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the user asked for. `train.py --help` says what each one means."""

    steps: int
    batch_size: int
    micro_batches: int
    lr: float
    warmup: int
    weight_decay: float
    clip_grad_norm: float
    seed: int
    dtype: str
    eval_every: int
    checkpoint_every: int
    resume: bool

    def __post_init__(self) -> None:
        """
        Raises:
            MimoError: values that are impossible, alone or together.
        """
        for name, least in (("steps", 1), ("batch_size", 1), ("micro_batches", 1), ("warmup", 1), ("seed", 0)):
            self._require(name, getattr(self, name) >= least, f"use {least} or more")
        for name in ("eval_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 0, "use a number of steps, or 0 for never")
        self._require("lr", 0 < self.lr < float("inf"), "use a number above 0")
        for name in ("weight_decay", "clip_grad_norm"):
            self._require(name, 0 <= getattr(self, name) < float("inf"), "use 0 or more")
        enough = self.micro_batches <= self.batch_size
        self._require("micro_batches", enough, f"a batch of {self.batch_size} samples makes at most {self.batch_size}")

    def _require(self, name: str, holds: bool, advice: str) -> None:
        if not holds:
            raise MimoError(f"--{name.replace('_', '-')} {getattr(self, name)}: {advice}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of parameters and activations."""
        return DTYPES[self.dtype]

    def learning_rate(self, step: int) -> float:
        """Rises linearly to `lr` over the warm-up, then falls as 1/step; it does not depend on where training ends."""
        return self.lr * min(step / self.warmup, self.warmup / step)


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises:
        MimoError: values that are impossible, alone or together.
    """
    parser = argparse.ArgumentParser(
        description="Train a small vision-language model to write the name of a handwritten digit.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=500, help="train up to this step")
    parser.add_argument("--batch-size", type=int, default=32, help="samples per step, over all lanes")
    parser.add_argument("--micro-batches", type=int, default=1, help="parts that a batch is split into, for pipelines")
    parser.add_argument("--lr", type=float, default=3e-3, help="highest learning rate")
    parser.add_argument("--warmup", type=int, default=50, help="steps until the highest learning rate")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="AdamW's weight decay")
    parser.add_argument("--clip-grad-norm", type=float, default=0.0, help="largest norm of all gradients; 0: no limit")
    parser.add_argument("--seed", type=int, default=0, help="decides the initial weights and the order of samples")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32", help="type of parameters and activations")
    parser.add_argument("--eval-every", type=int, default=100, help="measure accuracy after so many steps; 0: only at the end")
    parser.add_argument("--checkpoint-every", type=int, default=0, help="save after so many steps; 0: never")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the run folder")
    return Options(**vars(parser.parse_args(arguments)))
