"""Pipeline parallel: two stages of `torch.distributed.pipelining`, one on each rank, under the 1F1B schedule."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

MICRO_BATCHES = 4


def main():
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if not dist.is_initialized():
        dist.init_process_group("gloo", rank=rank, world_size=world_size)
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(world_size)]
    stage = PipelineStage(layers[rank], rank, world_size, torch.device("cpu"))
    schedule = Schedule1F1B(stage, MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.SGD(layers[rank].parameters(), lr=0.1)
    inputs, targets = torch.randn(16, 8), torch.randn(16, 8)
    for step in range(3):
        optimizer.zero_grad()
        if rank == 0:
            schedule.step(inputs)
        else:
            losses = []
            schedule.step(target=targets, losses=losses)
            print(f"stage {rank} step {step} losses {[round(each.item(), 5) for each in losses]}")
        optimizer.step()
    print(f"stage {rank} weight {layers[rank][0].weight.sum().item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
