"""A `MimoModel`: a vision encoder, an audio encoder and a GPT with experts, each over the groups of its own grid."""

import argparse
from importlib.util import find_spec
from typing import Any

import torch
from data import AUDIO_TOKEN, FRAME, FRAMES, LENGTH, PATCH, PATCHES, VISION_TOKEN, VOCABULARY
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.mimo import MimoModel, MimoModelConfig
from megatron.core.models.mimo.submodules.audio import AudioModalitySubmodules
from megatron.core.models.mimo.submodules.vision import VisionModalitySubmodules
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
from megatron.core.transformer import MegatronModule, ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from torch import nn

import mimo_role

HIDDEN, ENCODER_HIDDEN = 64, 32
ENCODERS = {
    "vision": (VisionModalitySubmodules, PATCHES, PATCH),
    "audio": (AudioModalitySubmodules, FRAMES, FRAME),
}


class Norm(nn.RMSNorm):
    """torch's norm where Transformer Engine is absent; with sequence parallelism its gradients are summed over tp."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps)
        self.weight.sequence_parallel = config.sequence_parallel


class Encoder(MegatronModule):
    """Megatron-Core's transformer layers over parts of a sample: `[batch, length, width]` -> `[batch, length, hidden]`."""

    def __init__(self, config: TransformerConfig, groups: Any, length: int, width: int) -> None:
        super().__init__(config)
        self.tp_group = groups.tp  # for checkpoints
        self.read = nn.Linear(width, config.hidden_size)
        self.position = nn.Parameter(torch.randn(length, config.hidden_size) * 0.02)
        self.layers = TransformerBlock(config, layers(config, groups, AttnMaskType.no_mask), pg_collection=groups)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        hidden = self.read(samples) + self.position
        return self.layers(hidden.transpose(0, 1).contiguous(), attention_mask=None).transpose(0, 1)


class Projection(MegatronModule):
    """An encoder's outputs to embeddings of the language model."""

    def __init__(self, config: TransformerConfig, groups: Any) -> None:
        super().__init__(config)
        self.tp_group = groups.tp
        self.linear = nn.Linear(config.hidden_size, HIDDEN)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        return self.linear(encoded)


def layers(config: TransformerConfig, groups: Any, mask: AttnMaskType) -> ModuleSpec | TransformerBlockSubmodules:
    """This stage's: Transformer Engine's layers where it is installed, otherwise Megatron-Core's own."""
    if find_spec("transformer_engine"):
        spec = get_gpt_layer_with_transformer_engine_spec(num_experts=config.num_moe_experts)
        spec.submodules.self_attention.params["attn_mask_type"] = mask
        return spec
    spec = get_gpt_layer_local_spec(num_experts=config.num_moe_experts, normalization="RMSNorm")
    spec.submodules.self_attention.params["attn_mask_type"] = mask
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    number = get_num_layers_to_build(config, pp_rank=groups.pp.rank())
    return TransformerBlockSubmodules(layer_specs=[spec] * number, layer_norm=Norm)


def config_of(ctx: mimo_role.RoleContext, module: str, options: argparse.Namespace, **sizes: Any) -> TransformerConfig:
    """The config of a module, on every rank. Losses are sums: `finalize` divides gradients by the tokens of all lanes."""
    grid = ctx.topology.grids[module]
    return TransformerConfig(
        num_attention_heads=4,
        tensor_model_parallel_size=grid.axis_size("tp"),
        pipeline_model_parallel_size=grid.axis_size("pp"),
        normalization="RMSNorm",
        add_bias_linear=False,
        bias_dropout_fusion=False,
        hidden_dropout=options.dropout,
        attention_dropout=options.dropout,
        calculate_per_token_loss=True,
        **sizes,
    )


def language_config(ctx: mimo_role.RoleContext, options: argparse.Namespace) -> TransformerConfig:
    experts = ctx.topology.expert_grids.get("language")  # None without ep and expt_tp in the YAML
    return config_of(
        ctx,
        "language",
        options,
        num_layers=2,
        hidden_size=HIDDEN,
        pipeline_dtype=torch.float32,
        variable_seq_lengths=True,
        sequence_parallel=ctx.topology.grids["language"].axis_size("tp") > 1,
        expert_model_parallel_size=experts.axis_size("ep") if experts else 1,
        expert_tensor_parallel_size=experts.axis_size("expt_tp") if experts else 1,
        num_moe_experts=4,
        moe_router_topk=2,
        moe_ffn_hidden_size=HIDDEN,
        moe_token_dispatcher_type="alltoall",
        moe_router_load_balancing_type="seq_aux_loss",
        moe_aux_loss_coeff=1e-2,
    )


def language_spec(ctx: mimo_role.RoleContext, config: TransformerConfig) -> ModuleSpec:
    """Without groups on the ranks of encoders, where `MimoModel` reads the config only."""
    params = {
        "config": config,
        "vocab_size": VOCABULARY,
        "max_sequence_length": LENGTH,
        "pre_process": ctx.role.is_first_stage("language"),
        "post_process": ctx.role.is_last_stage("language"),
        "position_embedding_type": "rope",
        "scatter_embedding_sequence_parallel": False,  # MimoModel does it, once the encoders' outputs are in their places
    }
    if ctx.role.has_language_module:
        groups = ctx.megatron_process_groups("language")
        params |= {"transformer_layer_spec": layers(config, groups, AttnMaskType.causal), "pg_collection": groups}
    return ModuleSpec(GPTModel, params=params)


def encoder_spec(ctx: mimo_role.RoleContext, module: str, options: argparse.Namespace) -> ModuleSpec:
    kind, length, width = ENCODERS[module]
    if module not in ctx.role.modules:
        return ModuleSpec(kind)
    groups = ctx.megatron_process_groups(module)
    config = config_of(ctx, module, options, num_layers=1, hidden_size=ENCODER_HIDDEN)
    encoder = ModuleSpec(Encoder, params={"config": config, "groups": groups, "length": length, "width": width})
    projection = ModuleSpec(Projection, params={"config": config, "groups": groups})
    submodules = {"encoders": {"encoder": encoder}, "input_projections": [projection]}
    return ModuleSpec(kind, params={"pg_collection": groups}, submodules=submodules)


def build(ctx: mimo_role.RoleContext, options: argparse.Namespace) -> MimoModel:
    """This rank's part of the model, its modules wrapped in Megatron-Core's `DistributedDataParallel`."""
    seed(ctx, options)
    config = language_config(ctx, options)
    groups = {name: ctx.megatron_process_groups(name) for name in ctx.role.modules}
    model = MimoModel(
        MimoModelConfig(
            language_model_spec=language_spec(ctx, config),
            modality_submodules_spec={name: encoder_spec(ctx, name, options) for name in ENCODERS},
            special_token_ids={"vision": VISION_TOKEN, "audio": AUDIO_TOKEN},
            module_to_grid_map=ctx.megatron_grid_map(),
        ),
        tp_group=groups["language"].tp if "language" in groups else None,
        cp_group=groups["language"].cp if "language" in groups else None,
    ).to(ctx.device)
    ddp_config = DistributedDataParallelConfig(use_distributed_optimizer=True)
    for name, collection in groups.items():
        module = model.language_model if name == "language" else model.modality_submodules[name]
        module.requires_grad_(name not in options.freeze)
        if name in options.freeze_encoder:
            module.encoders.requires_grad_(False).eval()
        wrapped = DistributedDataParallel(config, ddp_config, module, pg_collection=collection)
        if name == "language":
            model.language_model = wrapped
        else:
            model.modality_submodules[name] = wrapped
    return model


def seed(ctx: mimo_role.RoleContext, options: argparse.Namespace) -> None:
    """Random numbers differ between modules and stages; Megatron-Core's tracker adds what differs over tp and ep."""
    module = next(iter(ctx.role.modules))
    groups = ctx.megatron_process_groups(module)
    own = options.seed + 1000 * list(ctx.topology.grids).index(module) + 100 * groups.pp.rank()
    torch.manual_seed(own)
    model_parallel_cuda_manual_seed(own, tp_rank=groups.tp.rank(), ep_rank=groups.ep.rank(), etp_rank=groups.expt_tp.rank())
