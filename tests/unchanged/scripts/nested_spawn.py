"""A rank that starts processes of its own by `torch.multiprocessing.spawn`, which import this script as `__mp_main__`."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def square(number):
    return number * number


def work(index, rank, results):
    results.put((index, rank, torch.full((2,), float(index + rank)).tolist()))


def main():
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    print(f"{multiprocessing.current_process().name}, parent {multiprocessing.parent_process()}")
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    workers = mp.spawn(work, args=(rank, results), nprocs=2, join=False)
    found = sorted(results.get() for _ in range(2))
    while not workers.join():
        pass
    print(f"rank {rank}: {found}")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        print(f"rank {rank}: {list(pool.map(square, range(4)))}")
    with multiprocessing.Pool(2) as pool:
        print(f"rank {rank}: {pool.map(square, range(4))} with {multiprocessing.get_start_method()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
