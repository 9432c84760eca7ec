"""Fully sharded data parallel (FSDP2): each block and the root are sharded over a mesh, with reduced precision."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard


def make_model(mesh):
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(3)))
    for block in model:
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    return fully_shard(model, mesh=mesh)


def main():
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),), mesh_dim_names=("dp",))
    torch.manual_seed(0)
    model = make_model(mesh)
    assert isinstance(model, FSDPModule)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.manual_seed(rank)
    batch = torch.randn(8, 16)
    for step in range(3):
        loss = model(batch).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"rank {rank} step {step} loss {loss.item():.5f} norm {norm.full_tensor().item():.5f}", flush=True)
    shapes = [tuple(each.to_local().shape) for each in model.parameters()]
    print(f"rank {rank} holds {shapes}")
    dist.destroy_process_group()


main()
