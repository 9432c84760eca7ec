"""One language model over lanes and tensor parallel ranks, with collectives of its own: no bug in it."""

import os

import torch
import torch.distributed as dist
from torch import nn

import mimo_role
from mimo_role import checkpoint

SAMPLES, LENGTH, WIDTH, HEADS = 2**24, 4, 64, 8
TEST_SAMPLES = 8192

ctx = mimo_role.current()
tp, dp = ctx.group("language", "tp"), ctx.group("language", "dp")
lane, lanes = ctx.lane("language")
tp_rank, tp_size = dist.get_rank(tp), dist.get_world_size(tp)
local_rank = int(os.environ["LOCAL_RANK"])
torch.manual_seed(1 + tp_rank)
print(f"rank {ctx.rank} uses GPU {local_rank}")


class Attention(nn.Module):
    """This rank's heads."""

    def __init__(self):
        super().__init__()
        self.heads = HEADS // tp_size
        self.into = nn.Linear(WIDTH, 3 * WIDTH // tp_size)
        self.out = nn.Linear(WIDTH // tp_size, WIDTH, bias=False)

    def forward(self, x):
        query, key, value = (
            part.view(*x.shape[:2], self.heads, WIDTH // HEADS).transpose(1, 2) for part in self.into(x).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


model = nn.ModuleDict({"language": Attention()})
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

settings = [{"lr": 1e-3, "seed": 7}] if ctx.rank == 0 else [None]
dist.broadcast_object_list(settings, src=0)
layout = [{"heads": HEADS}] if tp_rank == 0 else [None]
dist.broadcast_object_list(layout, group=tp, group_src=0)

neighbours = [list(range(first, first + 2)) for first in range(0, 8, 2)]
pairs = [dist.new_group(pair) for pair in neighbours]

# The samples of this lane, and where they begin in the file.
first, rows = lane * (SAMPLES // lanes), 2
starts = torch.arange(rows) * LENGTH * WIDTH + first * LENGTH * WIDTH
weight = torch.ones(()) / lanes


def train_step():
    x = torch.randn(rows, LENGTH, WIDTH)
    y = model["language"](x)
    dist.all_reduce(y.detach(), group=tp)
    loss = y.square().mean()
    loss.backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad, group=dp)
    return loss.detach()


def evaluate():
    tests = TEST_SAMPLES // lanes
    errors = torch.ones(tests)
    gathered = [torch.empty(tests) for _ in range(lanes)]
    dist.all_gather(gathered, errors, group=dp)
    return torch.cat(gathered).mean()


def exchange():
    """The last rows of this lane go to the next one."""
    if lanes == 1:
        return
    halo = torch.zeros(LENGTH, WIDTH)
    work = []
    if lane > 0:
        work.append(dist.irecv(halo, group=dp, group_src=lane - 1))
    if lane < lanes - 1:
        work.append(dist.isend(torch.ones(LENGTH, WIDTH), group=dp, group_dst=lane + 1))
    for each in work:
        each.wait()


steps = 4
for step in range(steps):
    ctx.step(step)
    loss = train_step()
    exchange()
    dist.all_reduce(loss, group=dp, op=dist.ReduceOp.SUM)
    optimizer.step()
    optimizer.zero_grad()
    accuracy = evaluate()
    checkpoint.save(ctx, ctx.run_dir / "checkpoints", step, model, optimizer)
