"""From roles to modules, their tensor parallelism, and their optimizer."""

from collections.abc import Sequence

import torch
from model import ENCODERS, LANGUAGE, Encoder, LanguageModel, Sizes, Stage, initialize
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from mimo_role import MIMO_LANGUAGE_MODULE_KEY, MimoError, RoleContext

COLUMN_WISE = ("attention.query", "attention.key", "attention.value", "feed_forward.expand")
ROW_WISE = ("attention.output", "feed_forward.contract")


def build_modules(ctx: RoleContext, modalities: Sequence[str], seed: int, dtype: torch.dtype) -> nn.ModuleDict:
    """This rank's stages of the modules of its role, under the modules' names.

    Raises:
        MimoError: a grid that the model cannot be cut into.
    """
    modules = nn.ModuleDict()
    for name in ctx.role.modality_module_names:
        modules[name] = Encoder(name, _stage(ctx, name, ENCODERS[name]))
    if ctx.role.has_language_module:
        stage = _stage(ctx, MIMO_LANGUAGE_MODULE_KEY, LANGUAGE)
        modules[MIMO_LANGUAGE_MODULE_KEY] = LanguageModel(modalities, stage)
    for name, module in modules.items():
        initialize(module.to(dtype), name, seed)
        module.to(ctx.device)
        if ctx.topology.grids[name].axis_size("tp") > 1:
            _split_over_tensor_ranks(module, ctx.mesh(name)["tp"])
    return modules


def _stage(ctx: RoleContext, name: str, sizes: Sizes) -> Stage:
    """What of a module this rank builds."""
    grid = ctx.topology.grids[name]
    tp, pp = grid.axis_size("tp"), grid.axis_size("pp")
    if pp > sizes.depth:
        raise MimoError(f"modules.{name}.pp={pp}: the module has {sizes.depth} layers; use at most {sizes.depth}")
    if (cp := grid.axis_size("cp")) > 1:
        raise MimoError(f"modules.{name}.cp={cp}: this example's layers need whole samples; use 1")
    count, parts = (sizes.heads, "heads") if sizes.heads else (sizes.inner_width, "hidden units")
    if count % tp:
        raise MimoError(f"modules.{name}.tp={tp} does not divide its {count} {parts}")
    layers = sizes.layers_of(ctx.coords(name)["pp"], pp)
    return Stage(layers, is_first=ctx.role.is_first_stage(name), is_last=ctx.role.is_last_stage(name))


def _split_over_tensor_ranks(module: nn.Module, mesh: DeviceMesh) -> None:
    for block in module.blocks.values():
        held = {name for name, _ in block.named_modules()}
        plan = {name: ColwiseParallel() for name in COLUMN_WISE if name in held}
        plan |= {name: RowwiseParallel() for name in ROW_WISE if name in held}
        if "attention" in held:
            # Made a DTensor once, the input of query, key and value gets their gradients in one all-reduce.
            plan["attention"] = PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate())
        # Every rank drew the same whole parameters, so each keeps its shard and none is sent.
        parallelize_module(block, mesh, plan, src_data_rank=None)


def make_optimizer(modules: nn.ModuleDict, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW. Fused kernels take DTensors or plain tensors, not both at once, so each kind is a group."""
    parameters = list(modules.parameters())
    sharded = [parameter for parameter in parameters if isinstance(parameter, DTensor)]
    plain = [parameter for parameter in parameters if not isinstance(parameter, DTensor)]
    groups = [{"params": group} for group in (plain, sharded) if group]
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=True)
