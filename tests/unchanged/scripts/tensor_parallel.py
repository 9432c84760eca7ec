"""Tensor parallel: an MLP whose layers are split over columns and rows by `parallelize_module`."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

PLAN = {"up": ColwiseParallel(), "down": RowwiseParallel()}


class FeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, inputs):
        return inputs + self.down(self.up(inputs).relu())


# No init_process_group: init_device_mesh calls it.
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
torch.manual_seed(1)
model = parallelize_module(FeedForward(8), mesh["tp"], PLAN)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batch = torch.randn(4, 8)
for step in range(3):
    loss = model(batch).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"tp {mesh.get_local_rank('tp')} step {step} loss {loss.item():.6f}")
print(f"up {tuple(model.up.weight.to_local().shape)} placed {model.up.weight.placements}")
dist.destroy_process_group()
