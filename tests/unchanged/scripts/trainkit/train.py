"""The program of the project: it imports its neighbours, and pickles a class of its own."""

import os
import pickle
import sys
from importlib import resources

import torch
import torch.distributed as dist

from . import STEPS
from .model import Model


class State:
    step = STEPS


def main() -> int:
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    torch.manual_seed(4)
    model = Model(2, 2)
    total = model.weight.detach().sum()
    dist.all_reduce(total)
    with open(f"state{dist.get_rank()}.pickle", "wb") as file:
        pickle.dump(State(), file)
    print(f"{__name__} of {__package__}, spec {__spec__.name}, file {os.path.relpath(__file__)}")
    print(f"argv {[os.path.relpath(sys.argv[0]), *sys.argv[1:]]}, path {sys.path[0] == os.getcwd()}, {total.item():.6f}")
    print(sorted(each.name for each in resources.files(__package__).iterdir() if each.name.endswith(".py")))
    dist.destroy_process_group()
    return int(sys.argv[1])


if __name__ == "__main__":
    sys.exit(main())
