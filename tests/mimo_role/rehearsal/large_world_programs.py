"""Programs over torch's own APIs for one rank of a world of 10,240."""

import shutil
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed._composable.replicate import replicate
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

SIZE, RANK = 10_240, 4101


def reductions_that_gloo_lacks():
    dist.all_reduce(mean := torch.ones(2), dist.ReduceOp.AVG)
    dist.all_reduce(scaled := torch.ones(2), dist._make_nccl_premul_sum(0.5))
    dist.all_reduce(bits := torch.tensor([5]), dist.ReduceOp.BAND)
    return [mean, scaled, bits]


def parts_of_groups():
    world = dist.split_group(split_ranks=[list(range(0, SIZE, 2)), list(range(1, SIZE, 2))])
    half = dist.split_group(world, [list(range(SIZE // 4)), list(range(SIZE // 4, SIZE // 2))], group_desc="half")
    absent = dist.split_group(split_ranks=[[0, 1]])
    of_eight, every = dist.new_subgroups(8)
    return {
        "sizes": [dist.get_world_size(group) for group in (world, half, of_eight)],
        "places": [dist.get_rank(group) for group in (world, half, of_eight)],
        "description": half.group_desc,
        "absent": absent is None,
        "groups": len(every),
    }


def messages():
    group = dist.new_group([RANK - 1, RANK, RANK + 1], use_local_synchronization=True)
    received = torch.ones(2)
    dist.send(torch.ones(2), group=group, group_dst=2)
    source = dist.recv(received, group=group, group_src=0)
    operations = [
        dist.P2POp(dist.isend, torch.ones(2), group=group, group_peer=0),
        dist.P2POp(dist.irecv, torch.ones(2), group=group, group_peer=2),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    uneven = torch.full((6,), -1.0)
    dist.all_to_all_single(uneven, torch.arange(5.0), [1, 2, 3], [2, 2, 1], group=group)
    return [received, source, uneven]


def sharded():
    """FSDP2 with replicas of shards and mixed precision over tensor parallelism, and the older FSDP."""
    mesh = init_device_mesh("cpu", (20, 64, 8), mesh_dim_names=("replicate", "shard", "tp"))
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, mesh=mesh["replicate", "shard"], mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.ones(2, 64)).float().square().mean().backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).full_tensor()
        optimizer.step()
        optimizer.zero_grad()
    older = FullyShardedDataParallel(nn.Linear(64, 64), device_id=torch.device("cpu"))
    older(torch.ones(2, 64)).sum().backward()
    return {
        "local": [list(parameter.to_local().shape) for parameter in model.parameters()],
        "finite": bool(norm.isfinite()) and all(bool(each.to_local().isfinite().all()) for each in model.parameters()),
        "older": [parameter.grad is not None for parameter in older.parameters()],
    }


def redistributed():
    mesh = init_device_mesh("cpu", (1280, 8), mesh_dim_names=("dp", "tp"))
    whole = torch.arange(2560 * 16.0).view(2560, 16)
    shard = distribute_tensor(whole, mesh, [Shard(0), Shard(1)])
    found = {"shard": shard.to_local()}
    for placements in ([Replicate(), Shard(0)], [Shard(1), Replicate()], [Shard(0), Shard(0)], [Replicate(), Replicate()]):
        found[str(placements)] = list(shard.redistribute(placements=placements).to_local().shape)
    found["partial"] = shard.sum(dim=0).redistribute(placements=[Replicate(), Replicate()]).to_local()[:2]
    found["one dimension"] = list(distribute_tensor(torch.ones(8, 3), mesh["tp"], [Partial()]).full_tensor().shape)
    return found


def replicated():
    model = replicate(nn.Linear(4, 4))
    model(torch.ones(1, 4)).sum().backward()
    twice = nn.parallel.DistributedDataParallel(nn.Linear(4, 4), static_graph=True, gradient_as_bucket_view=True)
    twice(torch.ones(1, 4)).sum().backward()
    return [model.weight.grad, twice.module.weight.grad]


def checkpoints():
    """Saved, saved in the background, and read, with what is sharded over all ranks."""
    mesh, folder = init_device_mesh("cpu", (SIZE,)), Path(tempfile.mkdtemp())
    model = nn.Linear(4, SIZE)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    found = []
    for name in ("now", "later"):
        weights, states = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": states}
        save = checkpoint.save if name == "now" else lambda *args, **given: checkpoint.async_save(*args, **given).result()
        save(state, checkpoint_id=folder / name)
        before = model.weight.to_local().clone()
        with torch.no_grad():
            model.weight.to_local().zero_()
        weights, states = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": states}
        checkpoint.load(state, checkpoint_id=folder / name)
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        found.append(torch.equal(model.weight.to_local(), before))
    shutil.rmtree(folder)
    return found


PROGRAMS = (reductions_that_gloo_lacks, parts_of_groups, messages, sharded, redistributed, replicated, checkpoints)
