"""Megatron-Core's optimizer, pipeline schedule and checkpoints for a `MimoModel`, over the groups of a context."""

import argparse
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from data import FRAMES, PATCHES, Samples
from megatron.core import dist_checkpointing
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.mimo import MimoModel, get_mimo_optimizer
from megatron.core.optimizer import OptimizerConfig
from megatron.core.pipeline_parallel.multimodule_communicator import MultiModulePipelineCommunicator
from megatron.core.pipeline_parallel.schedules import forward_backward_pipelining_without_interleaving
from model import build
from prefetch import Prefetch
from torch_adam import prepare_loading, separate_steps, without_empty_parts

import mimo_role


class Trainer:
    """A rank's part of the model, its optimizer, and the communicator between modules and stages."""

    def __init__(self, ctx: mimo_role.RoleContext, options: argparse.Namespace) -> None:
        self.ctx, self.options = ctx, options
        self.model: MimoModel = build(ctx, options)
        self.batches = Prefetch(Samples(ctx, options), self.model, options.freeze_encoder if options.prefetch else [])
        adam = OptimizerConfig(
            optimizer="adam", lr=options.lr, weight_decay=0.01, clip_grad=options.clip_grad, use_distributed_optimizer=True
        )
        self.optimizer = without_empty_parts(get_mimo_optimizer(self.model, adam))
        self.model.config.finalize_model_grads_func = self.finalize
        self.communicator = communicator_of(ctx, self.model, options)

    def step(self, step: int) -> tuple[float, float]:
        """One optimizer step; the mean loss, and the norm of the gradients over all modules."""
        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = self.batches.micro_batches(step)
        sums = forward_backward_pipelining_without_interleaving(
            forward_step_func=forward,
            data_iterator=batches,
            model=self.model,
            num_microbatches=self.options.micro_batches,
            seq_length=1,  # shapes travel with each message
            micro_batch_size=1,
            p2p_communicator=self.communicator,
            pg_collection=self.ctx.megatron_multi_module_process_groups(),
        )
        deque(batches, maxlen=0)  # what is computed ahead after the last micro-batch
        _, norm, _ = self.optimizer.step()
        return self.ctx.mean_loss([loss for loss, _ in sums], sum(tokens for _, tokens in sums)).item(), norm

    def finalize(self, _: list[MimoModel], num_tokens: torch.Tensor, pg_collection: Any, **options: Any) -> None:
        """Sum each module's gradients over its own groups, and divide all by the tokens of the whole batch."""
        tokens = num_tokens.float()
        if not (self.ctx.role.is_last_stage("language") and self.ctx.coords("language")["tp"] == 0):
            tokens.zero_()
        dist.all_reduce(tokens)
        for name, groups in pg_collection.module_pgs.items():
            module = self.model.language_model if name == "language" else self.model.modality_submodules[name]
            finalize_model_grads([module], pg_collection=groups, **options)
            module.scale_gradients(1 / tokens)

    def save(self, folder: Path, step: int) -> None:
        path = folder / f"step_{step:06d}"
        path.mkdir(parents=True, exist_ok=True)
        dist_checkpointing.save(self._state(), str(path))
        if self.ctx.rank == 0:
            unfinished = folder / "latest.tmp"
            unfinished.write_text(path.name)
            unfinished.replace(folder / "latest")  # at once: a job may be killed here

    def load(self, folder: Path) -> int:
        """Read the last checkpoint, of any layout; the step after which it was written."""
        name = (folder / "latest").read_text()
        prepare_loading(self.optimizer)
        state = dist_checkpointing.load(self._state(is_loading=True), str(folder / name))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        separate_steps(self.optimizer)
        return int(name.removeprefix("step_"))

    def _state(self, *, is_loading: bool = False) -> dict[str, Any]:
        metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True}
        model = self.model.sharded_state_dict(metadata=metadata)
        return {"model": model, "optimizer": self.optimizer.sharded_state_dict(model, is_loading, metadata=metadata)}


def communicator_of(ctx: mimo_role.RoleContext, model: MimoModel, options: argparse.Namespace) -> Any:
    """What moves activations and gradients between modules and stages: outputs of encoders are `[tokens, hidden]`."""
    if options.communicator == "mimo":
        samples, tokens = options.batch_size // options.micro_batches, {"vision": PATCHES, "audio": FRAMES}
        return ctx.megatron_pipeline_communicator(model.config, samples=samples, tokens=tokens, frozen=options.freeze)
    modules = list(ctx.topology.grids)
    return MultiModulePipelineCommunicator(
        ctx.megatron_grid_map(),
        {name: [] if name == "language" else ["language"] for name in modules},
        model.config,
        dim_mapping={"s": 0, "b": 1, "h": 2},
        module_output_ndim={name: 3 if name == "language" else 2 for name in modules},
    )


def forward(batches: Any, model: MimoModel) -> tuple[Any, Any]:
    """Megatron-Core's forward step: an output, and the function that makes it a loss where it is one."""
    batch = next(batches)
    if features := batch.pop("features", None):
        model.set_input_tensor(features)  # instead of encoding
    output, mask = model(**batch)
    return output, partial(sum_of_losses, mask)


def sum_of_losses(mask: torch.Tensor, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Any]:
    loss, tokens = (losses * mask).sum(), mask.sum().int()
    return loss, tokens, (loss.detach(), tokens)
