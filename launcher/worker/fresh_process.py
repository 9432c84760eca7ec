"""Resets a forked rank to the state of a fresh interpreter.

A forked rank begins with the state of the fork server: the same random state in all ranks, the server's streams.
`tests/launcher/worker/test_fresh_rank.py` lists what is compared, and each remaining difference with its reason.

Nothing needs to be done for `random`, which reseeds itself in a forked child, `tempfile`, which checks its process id,
and `uuid4` and `secrets`, which read the system's generator; umask, limits, locale and interpreter options are
inherited as by a fresh process. The seed of `hash(str)` cannot be changed: every dictionary of the server depends on it.
"""

import io
import multiprocessing
import os
import sys
import tempfile
from typing import Any


def become_fresh() -> None:
    """Reset this process. Call it once, in the rank, after its environment is complete."""
    _replace_streams()
    tempfile.tempdir = None
    multiprocessing.current_process().authkey = os.urandom(32)
    if "torch" in sys.modules:
        _draw_new_seeds()


def _replace_streams() -> None:
    """Output is written at once, as under torchrun: nothing is lost if the rank is killed. A script may close its streams."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        kept = getattr(sys, name)
        binary: Any = open(kept.fileno(), f"{mode}b", -1 if mode == "r" else 0, closefd=False)  # noqa: SIM115
        (binary.raw if mode == "r" else binary).name = f"<{name}>"
        own: Any = io.TextIOWrapper(binary, kept.encoding, kept.errors, newline="\n", write_through=True)
        own.mode = mode
        setattr(sys, name, own)
        setattr(sys, f"__{name}__", own)


def _draw_new_seeds() -> None:
    """torch and NumPy seed their default generators once per process, from the system's entropy.

    Not by `torch.seed()`: that also queues a seed for CUDA, whose generators start from a constant in a fresh process.
    NumPy's generator exists once `numpy.random` is imported; torch imports NumPy without it.
    """
    import torch

    torch.default_generator.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
