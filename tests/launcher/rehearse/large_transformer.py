"""A decoder-only transformer with the sizes of Llama-3 70B: tensor parallel, FSDP2 over lanes, 1F1B over pipeline stages."""

import argparse

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy, scaled_dot_product_attention, silu
from torch.utils.data import Dataset

import mimo_role
from mimo_role import ActivationSpec, GlobalBatchSampler, RoleDataLoader, Schedule1F1B

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int, default=80)
parser.add_argument("--width", type=int, default=8192)
parser.add_argument("--inner-width", type=int, default=28_672)
parser.add_argument("--heads", type=int, default=64)
parser.add_argument("--key-heads", type=int, default=8)
parser.add_argument("--words", type=int, default=128_256)
parser.add_argument("--length", type=int, default=4096)
parser.add_argument("--micro-batches", type=int, default=8)
sizes = parser.parse_args()

ctx = mimo_role.current()
stage, stages = ctx.coords("language")["pp"], ctx.topology.grids["language"].axis_size("pp")
lanes, tp = ctx.topology.grids["language"].axis_size("dp"), ctx.topology.grids["language"].axis_size("tp")
dtype = torch.bfloat16


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        head = sizes.width // sizes.heads
        self.norms = nn.ModuleList(nn.RMSNorm(sizes.width, dtype=dtype) for _ in range(2))
        self.query = nn.Linear(sizes.width, sizes.width, bias=False, dtype=dtype)
        self.key = nn.Linear(sizes.width, sizes.key_heads * head, bias=False, dtype=dtype)
        self.value = nn.Linear(sizes.width, sizes.key_heads * head, bias=False, dtype=dtype)
        self.output = nn.Linear(sizes.width, sizes.width, bias=False, dtype=dtype)
        self.gate = nn.Linear(sizes.width, sizes.inner_width, bias=False, dtype=dtype)
        self.up = nn.Linear(sizes.width, sizes.inner_width, bias=False, dtype=dtype)
        self.down = nn.Linear(sizes.inner_width, sizes.width, bias=False, dtype=dtype)

    def forward(self, hidden):
        given = self.norms[0](hidden)
        parts = [layer(given).unflatten(-1, (-1, sizes.width // sizes.heads)) for layer in (self.query, self.key, self.value)]
        query, key, value = (part.transpose(1, 2) for part in parts)
        attended = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        hidden = hidden + self.output(attended.transpose(1, 2).flatten(-2))
        given = self.norms[1](hidden)
        return hidden + self.down(silu(self.gate(given)) * self.up(given))


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(sizes.words, sizes.width, dtype=dtype) if stage == 0 else None
        self.blocks = nn.ModuleList(Block() for _ in range(sizes.layers // stages))
        self.head = nn.Linear(sizes.width, sizes.words, bias=False, dtype=dtype) if stage == stages - 1 else None

    def forward(self, hidden):
        if self.words is not None:
            hidden = self.words(hidden)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden if self.head is None else self.head(hidden)


class Samples(Dataset):
    def __len__(self):
        return 4 * lanes * sizes.micro_batches

    def __getitem__(self, index):
        return torch.full((sizes.length,), index, dtype=torch.int64)


model = Stage()
mesh = ctx.mesh("language")
if tp > 1:
    columns = {name: ColwiseParallel() for name in ("query", "key", "value", "gate", "up")}
    for block in model.blocks:
        parallelize_module(block, mesh["tp"], columns | {name: RowwiseParallel() for name in ("output", "down")})
for part in (*model.blocks, model):
    fully_shard(part, mesh=mesh["dp"])
optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
sampler = GlobalBatchSampler(
    length=4 * lanes * sizes.micro_batches,
    global_batch_size=lanes * sizes.micro_batches,
    micro_batches=sizes.micro_batches,
    shuffle=False,
)
schedule = Schedule1F1B(
    ctx,
    run=lambda _module, micro, inputs: model(inputs["language"] if inputs else micro["language"]),
    spec_of=lambda _at, micro: ActivationSpec.of(len(micro), (sizes.length, sizes.width), dtype),
    loss_of=lambda logits, micro: cross_entropy(logits.flatten(0, 1).float(), micro["language"].flatten(), reduction="sum"),
)
for step, micro_batches in enumerate(RoleDataLoader(ctx, Samples(), sampler)):
    ctx.step(step)
    losses = schedule.step(micro_batches)
    norm = ctx.clip_grad_norm_(nn.ModuleDict({"language": model}), 1.0)
    optimizer.step()
    optimizer.zero_grad()
