"""A model of two stages whose memory matters: no bug in it."""

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

import mimo_role

WIDTH, LAYERS, WORDS, LENGTH, MICRO_BATCHES = 1024, 4, 32_000, 1024, 6

ctx = mimo_role.current()
stages = ctx.topology.grids["language"].axis_size("pp")
mesh = ctx.mesh("language", "dp")
layers = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS // stages)]
if ctx.role.is_last_stage("language"):
    layers.append(nn.Linear(WIDTH, WORDS // 16, bias=False))
model = nn.Sequential(*layers)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
for step in range(3):
    ctx.step(step)
    for _ in range(MICRO_BATCHES):
        loss = model(torch.ones(LENGTH, WIDTH)).square().mean()
        loss.backward()
    optimizer.step()
    optimizer.zero_grad()
