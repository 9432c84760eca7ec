"""FSDP2 and tensor parallel layers of torch, over a mesh: no bug in it."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

WIDTH, INNER, LAYERS, TP = 64, 256, 2, 4


class Block(nn.Module):
    """A gated layer."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(x)))


dist.init_process_group()
rank, world = dist.get_rank(), dist.get_world_size()
mesh = init_device_mesh("cpu", (world // TP, TP), mesh_dim_names=("dp", "tp"))
torch.manual_seed(1)
model = nn.Sequential(*(Block() for _ in range(LAYERS)))
for block in model:
    parallelize_module(block, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(block, mesh=mesh["dp"])
fully_shard(model, mesh=mesh["dp"])
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
table = distribute_tensor(torch.ones(4 * TP, WIDTH), mesh["tp"], [Shard(0)])
for _ in range(2):
    x = torch.randn(2, WIDTH)
    loss = model(x).square().mean() + table.full_tensor().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
dist.destroy_process_group()
