"""Experts over ranks, with an exchange of tokens: no bug in it."""

import torch
import torch.distributed as dist
from torch import nn

import mimo_role

EXPERTS, WIDTH, TOKENS = 64, 8, 128

ctx = mimo_role.current()
ep = ctx.group("language", "ep")
ep_rank, ep_size = dist.get_rank(ep), dist.get_world_size(ep)
per_rank = EXPERTS // ep_size
torch.manual_seed(1)
router = nn.Linear(WIDTH, EXPERTS)
experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(per_rank))

for step in range(4):
    ctx.step(step)
    tokens = torch.randn(TOKENS, WIDTH)
    chosen = router(tokens).argmax(-1)
    order = chosen.argsort()
    to_send = torch.bincount(chosen, minlength=EXPERTS).view(ep_size, per_rank).sum(-1)
    to_receive = torch.empty_like(to_send)
    dist.all_to_all_single(to_receive, to_send, group=ep)
    received = torch.empty(int(to_receive.sum()), WIDTH)
    dist.all_to_all_single(received, tokens[order], to_receive.tolist(), to_send.tolist(), group=ep)
    for part, expert in zip(received.chunk(per_rank), experts, strict=False):
        expert(part).sum().backward()
    loss = torch.ones(1)
    dist.all_reduce(loss)
