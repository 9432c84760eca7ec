"""Programs over torch's own APIs, for ranks that all have the same: on real ones, and on one whose peers are rehearsed.

Each returns what this rank has in the end, as lists. Tensors that are divided among ranks have equal parts.
"""

import itertools
import os
import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mimo_role.rehearsal import world
from mimo_role.rehearsal.board import Board

SIZE = 4
UNSUPPORTED = "gloo does not support it"


def reductions():
    found = {}
    own = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    for name in ("SUM", "MIN", "MAX", "PRODUCT"):
        dist.all_reduce(tensor := own.clone(), getattr(dist.ReduceOp, name))
        dist.reduce(reduced := own.clone(), 2, getattr(dist.ReduceOp, name))
        found[name] = tensor
        found[f"reduce {name}"] = reduced if dist.get_rank() == 2 else own
    for name in ("BAND", "BOR", "BXOR"):
        dist.all_reduce(tensor := torch.tensor([6, 3, 0]), getattr(dist.ReduceOp, name))
        found[name] = tensor
    dist.all_reduce(flags := torch.tensor([True, False]))
    dist.all_reduce(halves := torch.tensor([1.5, -3.0], dtype=torch.bfloat16))
    return found | {"flags": flags, "bfloat16": halves}


def objects():
    rank, same = dist.get_rank(), {"same": [1, "x"]}
    gathered = [None] * SIZE
    dist.all_gather_object(gathered, same)
    on_one = [None] * SIZE if rank == 1 else None
    dist.gather_object(same, on_one, dst=1)
    dist.broadcast_object_list(sent := [same, 2], src=3)
    dist.scatter_object_list(part := [None], [same] * SIZE if rank == 0 else None, src=0)
    group = dist.new_group([1, 3])
    if rank in (1, 3):
        dist.broadcast_object_list(inner := ["of the group"], group=group, group_src=1)
        dist.all_gather_object(two := [None, None], rank % 2, group=group)
        return {"all": gathered, "one": on_one, "sent": sent, "inner": inner, "two": two}
    return {"all": gathered, "one": on_one, "sent": sent, "part": part if rank == 0 else None}


def lists_and_splits():
    rank, found = dist.get_rank(), {}
    row = torch.tensor([1.0, 2.0])
    parts = [torch.empty(2) for _ in range(SIZE)] if rank == 1 else None
    dist.gather(row, parts, group_dst=1)
    found["gather"] = parts or []
    scattered = torch.empty(2)
    dist.scatter(scattered, [row * number for number in range(SIZE)] if rank == 2 else None, src=2)
    found["scatter"] = scattered if rank == 2 else row
    counts = [2] * SIZE
    exchanged = torch.empty(2 * SIZE)
    dist.all_to_all_single(exchanged, torch.arange(2.0).repeat(SIZE), counts, counts)
    found["all_to_all_single"] = exchanged
    dist.reduce_scatter(reduced := torch.empty(2), [row] * SIZE)
    found["reduce_scatter"] = reduced
    return found


def lists_to_all():
    row = torch.tensor([1.0, 2.0])
    dist.all_to_all(equal := [torch.empty(2) for _ in range(SIZE)], [row] * SIZE)
    return equal


def futures():
    tensor = torch.ones(3)
    doubled = dist.all_reduce(tensor, async_op=True).get_future().then(lambda done: done.value()[0] * 2).wait()
    works = [
        dist.all_gather(parts := [torch.empty(3) for _ in range(SIZE)], tensor, async_op=True),
        dist.barrier(async_op=True),
    ]
    waited = [work.wait() for work in works]
    return {"doubled": doubled, "waited": waited, "parts": parts, "completed": all(work.is_completed() for work in works)}


def groups():
    own, every = dist.new_subgroups(2)
    dist.all_reduce(tensor := torch.ones(2), group=own)
    by_list, _ = dist.new_subgroups_by_enumeration([[0, 3], [1, 2]])
    dist.all_reduce(crossed := torch.ones(2), group=by_list)
    dist.monitored_barrier()
    dist.barrier(group=own)
    named = dist.new_group(list(range(SIZE)), group_desc="mine")
    gone = dist.new_group(list(range(SIZE)))
    dist.all_reduce(torch.ones(1), group=gone)
    dist.destroy_process_group(gone)
    return {
        "two": tensor,
        "crossed": crossed,
        "groups": len(every),
        "places": [dist.get_group_rank(own, dist.get_rank()), dist.get_rank(by_list), dist.get_world_size(named)],
        "ranks": [dist.get_process_group_ranks(own), dist.get_process_group_ranks(by_list)],
        "description": named.group_desc,
        "from the parent": dist.get_global_rank(by_list, 1),
    }


def meshes():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    flat = mesh["dp", "tp"]._flatten("all")
    found = {"coordinate": mesh.get_coordinate(), "flat": flat.size()}
    for name in ("dp", "tp"):
        dist.all_reduce(tensor := torch.ones(1), group=mesh[name].get_group())
        found[name] = [tensor, mesh[name].get_local_rank(), dist.get_process_group_ranks(mesh.get_group(name))]
    return found


def placements():
    """Each change of placements over two dimensions; rows and columns of the tensor repeat, so that shards are equal."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    whole = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(SIZE, SIZE)
    choices = list(itertools.product((Replicate(), Shard(0), Shard(1)), repeat=2))
    found = {}
    for first, second in itertools.product(choices, choices):
        moved = distribute_tensor(whole, mesh, first).redistribute(placements=second)
        found[f"{first} {second}"] = moved.to_local()
    for second in choices:
        local = torch.ones(4, 4)
        found[f"partial {second}"] = DTensor.from_local(local, mesh, [Partial()] * 2).redistribute(placements=second).to_local()
    found["sum"] = distribute_tensor(whole, mesh, [Shard(0), Shard(1)]).sum().full_tensor()
    return found


def _equal_rows(model):
    """Weights whose shards are equal."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters(), 1):
            parameter.copy_(torch.full_like(parameter, 0.125 * number))
    return model


def _trained(model, optimizer=None, dtype=torch.float32):
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        loss = model(torch.full((2, 8), 1.0 + step)).to(dtype).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses += [loss, norm.full_tensor() if isinstance(norm, DTensor) else norm]
    kept = [each.to_local() if isinstance(each, DTensor) else each for each in model.parameters()]
    return {"losses": losses, "parameters": kept}


def _model():
    return _equal_rows(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)))


def sharded():
    found = {}
    meshes = {"fsdp": init_device_mesh("cpu", (SIZE,)), "hsdp": init_device_mesh("cpu", (2, 2), mesh_dim_names=("r", "s"))}
    for name, mesh in meshes.items():
        for dtype in (torch.float32, torch.bfloat16):
            model, policy = _model(), MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
            for layer in (model[0], model[2], model):
                fully_shard(layer, mesh=mesh, mp_policy=policy)
            found[f"{name} {dtype}"] = _trained(model)
    return found


def data_parallel():
    model = nn.parallel.DistributedDataParallel(_model())
    with model.no_sync():
        model(torch.ones(2, 8)).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    model(torch.ones(2, 8)).sum().backward()
    after = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return {"not yet": before, "both": after, "trained": _trained(model)}


def tensor_parallel():
    mesh = init_device_mesh("cpu", (SIZE,))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    return _trained(parallelize_module(_model(), mesh, plan))


def compiled():
    def step(tensor):
        total = functional.all_reduce(tensor * 2, "sum", dist.group.WORLD)
        gathered = functional.all_gather_tensor(total, 0, dist.group.WORLD)
        return functional.reduce_scatter_tensor(gathered, "sum", 0, dist.group.WORLD)

    return {"compiled": torch.compile(step, backend="aot_eager", fullgraph=True)(torch.ones(2, 3))}


def coalesced():
    with dist._coalescing_manager(async_ops=True) as manager:
        tensors = [torch.full((2,), float(number)) for number in range(3)]
        for tensor in tensors:
            dist.all_reduce(tensor)
    manager.wait()
    return {"tensors": tensors}


PROGRAMS = (
    reductions,
    objects,
    lists_and_splits,
    lists_to_all,
    futures,
    groups,
    meshes,
    placements,
    sharded,
    data_parallel,
    tensor_parallel,
    compiled,
    coalesced,
)


def plain(value):
    """Lists and numbers in place of tensors."""
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def outcomes_on_real_ranks():
    """The outcome of each program by its name; `UNSUPPORTED` for what gloo of the installed torch lacks."""
    _prepare()
    dist.init_process_group("gloo")
    found = {program.__name__: _outcome(program) for program in PROGRAMS}
    dist.destroy_process_group()
    return found


def _outcome(program):
    try:
        return plain(program())
    except RuntimeError as error:
        if "gloo does not support" not in str(error):
            raise
        return UNSUPPORTED


def outcomes_in_a_rehearsal(folder, programs, size, rank=None):
    """The same over peers that do not exist, of which `folder` has what they decided.

    Args:
        folder: of the board.
        programs: functions.
        size: of the world.
        rank: this one's; default: that of the process.
    """
    _prepare()
    rank = int(os.environ["RANK"]) if rank is None else rank
    world.install(Board(folder), rank, size)
    dist.init_process_group("gloo")
    return {program.__name__: plain(program()) for program in programs}


def _prepare():
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
