"""This rank's part of a model of transformers: built without memory, divided, and only then given memory."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from mimo_role.context import RoleContext
from mimo_role.errors import HfError
from mimo_role.hf.family import Config, Encoder, Family, Model
from mimo_role.training.fsdp_sums import set_gradient_sum

_HEADS = 2
"""The dimension of the heads where attention normalizes queries and keys: `[samples, tokens, heads, width]`."""


class PassThrough(nn.Module):
    """In the place of a layer that another stage runs."""

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


def build_on_meta(config: Config, family: Family, dtype: torch.dtype) -> Model:
    """The whole model, its parameters without memory; buffers are real.

    Raises:
        HfError: transformers or accelerate is missing.
    """
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        raise HfError("mimo_role.hf needs transformers and accelerate: pip install mimo-launch[hf]") from error
    with init_empty_weights(include_buffers=False):
        model = family.model_class()(copy.deepcopy(config))
    model.tie_weights()  # accelerate replaces each parameter, tied ones too
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype) if parameter.is_floating_point() else parameter.data
    model.train()
    return model


def is_tied(model: Model, family: Family) -> bool:
    """Whether the head has the weights of the input embeddings."""
    head, text = model.get_submodule(family.head), model.get_submodule(family.language)
    return bool(head.weight is text.embed_tokens.weight)


def layers_of(layers: int, stage: int, stages: int) -> range:
    """The layers of a stage: contiguous, in numbers that differ by at most one."""
    return range(stage * layers // stages, (stage + 1) * layers // stages)


def keep_stage(model: Model, family: Family, stage: int, stages: int) -> None:
    """Take out of the language model what other stages run; names of parameters stay.

    Raises:
        HfError: more stages than layers.
    """
    text = model.get_submodule(family.language)
    layers = text.layers
    assert isinstance(layers, nn.ModuleList)
    if stages > len(layers):
        raise HfError(f"the language model has {len(layers)} layers, fewer than its {stages} stages")
    own = layers_of(len(layers), stage, stages)
    for number in range(len(layers)):
        if number not in own:
            layers[number] = PassThrough()
    if stage > 0:
        text.embed_tokens = None
    if stage < stages - 1:
        text.norm = nn.Identity()
        _set(model, family.head, None)


def put_into(root: nn.Module, model: Model, paths: Collection[str]) -> None:
    """Put parts of a model into `root`, each at its own path, so that names are the model's."""
    for path in paths:
        part = model.get_submodule(path)
        *parents, name = path.split(".")
        at = root
        for parent in parents:
            if parent not in dict(at.named_children()):
                at.add_module(parent, nn.Module())
            at = at.get_submodule(parent)
        at.add_module(name, part)


def apply_tp(part: nn.Module, plan: Mapping[str, str], mesh: DeviceMesh) -> None:
    """Divide parameters over tensor-parallel ranks.

    Args:
        part: the module to which the plan's patterns are relative.
        plan: styles by pattern, in transformers' words.
        mesh: the tensor-parallel ranks.

    Raises:
        HfError: a style that is unknown here.
    """
    styles: dict[str, ParallelStyle] = {}
    for pattern, name in plan.items():
        if name not in _STYLES:
            raise HfError(f"{pattern}: tensor-parallel style {name!r} is unknown here; known are {', '.join(_STYLES)}")
        for found, module in part.named_modules():
            if _matches(found, pattern) and any(True for _ in module.parameters()):
                styles[found] = _STYLES[name]()
    parallelize_module(part, mesh, styles)


_STYLES: dict[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    "colwise_gather_output": lambda: ColwiseParallel(output_layouts=Replicate()),
    "embedding_rowwise": lambda: RowwiseParallel(input_layouts=Replicate()),
    "replicated_with_grad_allreduce": lambda: SequenceParallel(sequence_dim=_HEADS, use_local_output=True),
}
"""transformers' words for how a parameter is divided."""


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch, parts, wanted))


def tp_plan_of_encoder(encoder: Encoder, name: str, model: Model) -> Mapping[str, str]:
    """The plan of an encoder's tower.

    Raises:
        HfError: there is none.
    """
    tower = model.get_submodule(encoder.tower)
    plan = getattr(tower.config, "base_model_tp_plan", None)
    if not plan:
        raise HfError(
            f"modules.{name}.tp: transformers has no plan to divide {type(tower).__name__} over tensor-parallel ranks; "
            "use dp, or fsdp"
        )
    return dict(plan)


def shard(part: nn.Module, layers: Collection[nn.Module], mesh: DeviceMesh) -> None:
    """FSDP2 over a mesh: each layer by itself, then the rest; gradients are sums."""
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(part, mesh=mesh)
    set_gradient_sum(part)


def reshard(part: nn.Module) -> None:
    """Free what FSDP2 has gathered for a forward that no backward follows; parameters are shards again."""
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def repeated_layers(part: nn.Module) -> list[nn.Module]:
    """The layers of a part: what its lists of modules have, but for what other stages run."""
    return [
        layer
        for module in part.modules()
        if isinstance(module, nn.ModuleList)
        for layer in module
        if any(True for _ in layer.parameters())
    ]


def materialize(part: nn.Module, device: torch.device) -> None:
    """Give parameters memory, with any values, and move buffers. Tied parameters stay tied, which `to_empty` undoes."""
    buffers = {name: buffer.to(device) for name, buffer in part.named_buffers()}
    first: dict[nn.Parameter, str] = {}
    tied = {name: first.setdefault(each, name) for name, each in part.named_parameters(remove_duplicate=False)}
    part.to_empty(device=device)
    kept = {name: part.get_parameter(source) for name, source in tied.items() if name != source}
    for name, tensor in (buffers | kept).items():
        at, _, last = name.rpartition(".")
        setattr(part.get_submodule(at), last, tensor)


def mesh_of(ctx: RoleContext, module: str) -> DeviceMesh:
    """`dp_cp`, the lanes of a module and its context-parallel ranks, over which FSDP2 divides; and beside them `tp`."""
    return ctx.mesh(module, ("dp", "cp"), "tp")


def _unowned(model: Model, kept: Collection[str]) -> Iterator[str]:
    """Paths of the largest parts of a model of which none is kept."""
    pending = [name for name, _ in model.named_children()]
    while pending:
        path = pending.pop()
        if path in kept:
            continue
        if any(other.startswith(f"{path}.") for other in kept):
            pending += [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
        else:
            yield path


def remove(model: Model, kept: Collection[str]) -> None:
    """Take out all parts of a model but some."""
    for path in list(_unowned(model, kept)):
        _set(model, path, None)


def _set(model: Model, path: str, value: nn.Module | None) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, value)
