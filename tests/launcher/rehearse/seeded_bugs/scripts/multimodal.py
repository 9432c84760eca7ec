"""A vision encoder and a language model in two stages, with bridges: no bug in it."""

import torch
import torch.distributed as dist
from torch import nn

import mimo_role

BATCH, LENGTH, WIDTH, WORDS, LAYERS, MICRO_BATCHES = 4096, 3, 8, 32, 6, 2

ctx = mimo_role.current()
torch.manual_seed(1)
is_vision = ctx.role.has_modality_modules
module = "vision" if is_vision else "language"
stage, stages = ctx.coords(module)["pp"], ctx.topology.grids[module].axis_size("pp")
is_first, is_last = ctx.role.is_first_stage(module), ctx.role.is_last_stage(module)
lane, lanes = ctx.lane(module)
rows = (lane + 1) * BATCH // lanes - lane * BATCH // lanes

per_stage = LAYERS // stages
model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(per_stage)))
embedding = nn.Embedding(WORDS, WIDTH) if not is_vision and (is_first or is_last) else None
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
from_vision, from_first = ctx.bridge("vision"), ctx.bridge("language", stage=0)


def forward_backward():
    if is_vision:
        images = torch.randn(rows, LENGTH, WIDTH)
        from_vision(model(images), batch_size=BATCH).backward()
        return None
    if is_first:
        hidden = from_vision(batch_size=BATCH, sample_shape=(LENGTH, WIDTH), dtype=torch.float32)
        words = embedding(torch.zeros(rows, LENGTH, dtype=torch.int64))
        from_first(model(hidden + words), batch_size=BATCH).backward()
        return None
    hidden = from_first(batch_size=BATCH, sample_shape=(LENGTH, WIDTH), dtype=torch.float32)
    logits = model(hidden) @ embedding.weight.T
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(rows * LENGTH, dtype=torch.int64))
    loss.backward()
    return loss.detach()


def sum_over(group, tensor):
    dist.all_reduce(tensor, group=group)


for step in range(3):
    ctx.step(step)
    for _ in range(MICRO_BATCHES):
        loss = forward_backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            sum_over(ctx.group(module, "dp"), parameter.grad)
    if embedding is not None:  # the first stage's words and the last one's are the same
        sum_over(ctx.group("language", "pp"), embedding.weight.grad)
    if loss is not None:
        sum_over(ctx.group("language", "dp"), loss)
    optimizer.step()
    optimizer.zero_grad()
    dist.barrier()
