"""Datasets and worlds of the tests of data by role."""

import random
import signal
from types import SimpleNamespace

import numpy
import torch

from mimo_role import Topology

LAYOUTS = {
    "apart": Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2}}),
    "uneven": Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 3}}),
    "colocated": Topology.from_modules({"vision": {"dp": 4}, "language": {"tp": 2, "dp": 2}}, layout="colocated"),
    "pipelined": Topology.from_modules({"vision": {}, "language": {"pp": 2, "dp": 2}}),
    "two encoders": Topology.from_modules({"vision": {"dp": 3}, "sound": {"tp": 2}, "language": {"tp": 2, "dp": 2}}),
}


class Numbers:
    """Samples that contain their index, and random numbers of every generator that a script may draw from."""

    def __init__(self, length):
        self.length = length
        self.reads = 0

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        self.reads += 1
        draws = torch.tensor([random.random(), numpy.random.rand(), torch.rand(()).item()], dtype=torch.float64)
        is_shielded = signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        return {"index": index, "draws": draws, "name": f"sample {index}", "is_shielded": is_shielded}


def indices_and_noise(samples):
    """A collation that draws a random number."""
    return [sample["index"] for sample in samples], [tuple(sample["draws"].tolist()) for sample in samples], random.random()


def place(topology, rank):
    """As much of a context as a data loader uses that compares no ranks."""
    return SimpleNamespace(topology=topology, rank=rank, device=torch.device("cpu"))
