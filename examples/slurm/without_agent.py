"""A script that joins by itself, under srun: `mimo_role.init()` finds rank, world and meeting point in SLURM's variables."""

import socket

import torch
import torch.distributed as dist

import mimo_role

topology = mimo_role.Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": "auto"}}, world_size=8)
ctx = mimo_role.init(topology)

total = torch.ones(1, device=ctx.device)
dist.all_reduce(total)
modules = ", ".join(f"{name} {ctx.coords(name)}" for name in ctx.role.modules)
print(f"rank {ctx.rank} of {int(total.item())} on {socket.gethostname()}: {modules}", flush=True)
mimo_role.shutdown()
