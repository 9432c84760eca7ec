"""A loader of tar shards in the way of WebDataset: shards are split by rank and by loader worker.

Workers are forked, spawned or come from a fork server, and return batches of a class of this script.
"""

import dataclasses
import io
import os
import tarfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

FOLDER = Path("shards")


@dataclasses.dataclass
class Batch:
    keys: list
    values: torch.Tensor

    def pin_memory(self):
        return self


def write_shards(count, samples):
    FOLDER.mkdir()
    for shard in range(count):
        with tarfile.open(FOLDER / f"{shard:04}.tar", "w") as archive:
            for sample in range(samples):
                data = f"{100 * shard + sample}".encode()
                entry = tarfile.TarInfo(f"{shard:04}-{sample}.txt")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


class Shards(IterableDataset):
    """The samples of this worker's share of this rank's shards."""

    def __init__(self, urls, rank, world_size):
        self.urls = urls[rank::world_size]

    def __iter__(self):
        worker = get_worker_info()
        for url in self.urls[worker.id :: worker.num_workers]:
            with tarfile.open(url) as archive:
                for entry in archive:
                    yield entry.name, int(archive.extractfile(entry).read())


def collate(samples):
    return Batch([key for key, _ in samples], torch.tensor([value for _, value in samples]))


def main():
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        write_shards(count=8, samples=6)
    dist.barrier()
    dataset = Shards(sorted(FOLDER.glob("*.tar")), rank, world_size)
    for method, workers in (("fork", 2), ("forkserver", 1), ("spawn", 1)):
        how = {"multiprocessing_context": method, "persistent_workers": True}
        loader = DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate, **how)
        for epoch in range(2):
            batches = list(loader)
            print(f"rank {rank} {method} epoch {epoch}: {[batch.keys[0] for batch in batches]}")
        total = torch.stack([batch.values.sum() for batch in batches]).sum()
        dist.all_reduce(total)
        print(f"rank {rank} {method}: {type(batches[0]).__module__}.{type(batches[0]).__qualname__}, total {total.item()}")
    print(f"rank {rank}: {os.environ['LOCAL_RANK']} of {os.environ['LOCAL_WORLD_SIZE']} on this machine")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
