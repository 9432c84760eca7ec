"""A classifier of token sequences, replicated by DDP or divided by FSDP2, with AdamW. For `benchmarks/memory.py`."""

import argparse

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import mimo_role

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--divide", action="store_true", help="FSDP2 instead of DDP")
parser.add_argument("--width", type=int, default=1024)
parser.add_argument("--layers", type=int, default=4)
parser.add_argument("--batch-size", type=int, default=2048)
sizes = parser.parse_args()

ctx = mimo_role.current()


class Layer(nn.Module):
    """A block with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.width)
        self.wide, self.narrow = nn.Linear(sizes.width, 2 * sizes.width), nn.Linear(2 * sizes.width, sizes.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.narrow(nn.functional.gelu(self.wide(self.norm(hidden))))


model: nn.Module = nn.Sequential(*(Layer() for _ in range(sizes.layers)), nn.Linear(sizes.width, 100))
if sizes.divide:
    for part in (*model.children(), model):
        fully_shard(part, mesh=ctx.mesh("language")["dp"])
else:
    model = DistributedDataParallel(model, process_group=ctx.group("language", "dp"))
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
for step in range(3):
    ctx.step(step)
    hidden, labels = torch.randn(sizes.batch_size, sizes.width), torch.zeros(sizes.batch_size, dtype=torch.int64)
    loss = cross_entropy(model(hidden), labels)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
