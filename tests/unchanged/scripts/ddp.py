"""Data parallel, as in most first examples: DDP, a distributed sampler, a checkpoint that rank 0 writes and all ranks read."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

CHECKPOINT = "ddp.pt"


def train_epoch(model, loader, optimizer, epoch):
    loader.sampler.set_epoch(epoch)
    total = 0.0
    for inputs, targets in loader:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / len(loader)


def main():
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(7)
    inputs = torch.randn(64, 8)
    dataset = TensorDataset(inputs, inputs.sum(1, keepdim=True))
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    loader = DataLoader(dataset, batch_size=8, sampler=DistributedSampler(dataset, num_replicas=world_size, rank=rank))
    for epoch in range(3):
        print(f"[{rank}/{world_size}] epoch {epoch}: loss {train_epoch(model, loader, optimizer, epoch):.6f}")
    if rank == 0:
        torch.save(model.module.state_dict(), CHECKPOINT)
    dist.barrier()
    weights = torch.load(CHECKPOINT, map_location="cpu", weights_only=True)
    print(f"[{rank}/{world_size}] weights read: {sum(each.sum().item() for each in weights.values()):.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
