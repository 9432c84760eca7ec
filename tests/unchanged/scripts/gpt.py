"""A GPT in one file: settings are globals, ranks come from the environment, gradients accumulate under autocast."""

import math
import os
import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.distributed import destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817

out_dir = "out-gpt"
dtype = "bfloat16"
learning_rate = 1e-2
max_iters = 3
gradient_accumulation_steps = 4
compile = True  # noqa: A001
backend = "gloo"
exec(open(os.path.join(os.path.dirname(__file__), "gpt_config.py")).read())

is_distributed = int(os.environ.get("RANK", -1)) != -1
if is_distributed:
    init_process_group(backend=backend)
    rank, local_rank, world_size = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    master_process = rank == 0
    assert gradient_accumulation_steps % world_size == 0
    gradient_accumulation_steps //= world_size
else:
    master_process, rank, world_size = True, 0, 1
if master_process:
    os.makedirs(out_dir, exist_ok=True)
torch.manual_seed(1337 + rank)
autocast = nullcontext() if dtype == "float32" else torch.amp.autocast(device_type="cpu", dtype=getattr(torch, dtype))
data = torch.arange(512) % 31


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        query, key, value = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self, vocabulary=32, width=32):
        super().__init__()
        self.embedding, self.block, self.head = nn.Embedding(vocabulary, width), Block(width), nn.Linear(width, vocabulary)

    def forward(self, tokens, targets):
        logits = self.head(self.block(self.embedding(tokens)))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def get_batch():
    starts = torch.randint(len(data) - 17, (4,))
    return torch.stack([data[i : i + 16] for i in starts]), torch.stack([data[i + 1 : i + 17] for i in starts])


torch.manual_seed(1337)
model = GPT()
torch.manual_seed(1337 + rank)
if compile:
    model = torch.compile(model, backend="aot_eager")
if is_distributed:
    model = DDP(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
began = time.time()
for iteration in range(max_iters):
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * iteration / max_iters))
    for micro_step in range(gradient_accumulation_steps):
        if is_distributed:
            model.require_backward_grad_sync = micro_step == gradient_accumulation_steps - 1
        tokens, targets = get_batch()
        with autocast:
            loss = model(tokens, targets) / gradient_accumulation_steps
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if master_process:
        print(f"iter {iteration}: loss {loss.item() * gradient_accumulation_steps:.4f}")
if master_process:
    torch.save({"model": model.state_dict(), "iter_num": max_iters}, os.path.join(out_dir, "ckpt.pt"))
    assert time.time() >= began
if is_distributed:
    destroy_process_group()
