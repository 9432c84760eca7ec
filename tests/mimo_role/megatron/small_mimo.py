"""A small `MimoModel` in float64: an encoder of images, and a language model over Megatron-Core's tp and cp."""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn

from mimo_role import lane_samples
from mimo_role.megatron import set_token_counts
from tests.mimo_role.megatron.pipeline_vlm import HIDDEN, LENGTH, MICRO_BATCHES, drawn

LR, MAX_NORM = 0.02, 5.0
IMAGE, VOCABULARY = 0, 12
"""The token in whose places embeddings of images go; the others are text."""


@dataclass(frozen=True)
class Case:
    """A layout of the model."""

    vision: Mapping[str, int]
    language: Mapping[str, int]
    packed: bool = False
    """Whether a lane's samples lie behind each other in one sequence."""
    has_text: bool = True
    """Whether encoders get the text too, so that our `MimoModel` counts their tokens."""
    samples: int = 6
    """Of a micro-batch."""
    ddp: bool = False
    """Whether the modules are wrapped in Megatron-Core's `DistributedDataParallel`, which sums gradients."""
    colocated: bool = False
    """Whether all ranks run the encoder and one stage of the language model."""

    def text(self, micro, samples):
        """`[samples, LENGTH]`: the first micro-batch has no images, in the others their numbers of tokens differ."""
        rows = []
        for sample in samples:
            random = Random(f"{micro} {sample}")
            row = [random.randrange(1, VOCABULARY) for _ in range(LENGTH)]
            for place in random.sample(range(LENGTH), random.randrange(6) if micro else 0):
                row[place] = IMAGE
            rows.append(row)
        return torch.tensor(rows)

    def counts(self, micro, samples):
        """The tokens of images in each sample."""
        return (self.text(micro, samples) == IMAGE).sum(dim=1).tolist()

    def pixels(self, micro, sample):
        return drawn(f"pixels {micro} {sample}", self.counts(micro, [sample])[0], HIDDEN)


def labels_of(text, micro, samples):
    """Others for every place, so that the loss depends on it."""
    return (text * 7 + torch.arange(LENGTH) * 5 + torch.tensor(list(samples))[:, None] * 3 + micro) % VOCABULARY


def weight(name):
    return nn.Parameter(drawn(name, HIDDEN, HIDDEN) / 2)


def loss_per_token(hidden, labels):
    """`[batch, sequence]` of hidden states `[sequence, batch, hidden]`."""
    return (hidden.transpose(0, 1) * drawn("labels", VOCABULARY, HIDDEN)[labels]).sum(-1)


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = weight("encoder")

    def forward(self, pixels):
        return torch.tanh(pixels @ self.weight)


class Embedding(nn.Module):
    scatter_to_sequence_parallel = False

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(drawn("embedding", VOCABULARY, HIDDEN))

    def forward(self, input_ids, **_):
        return self.table[input_ids].transpose(0, 1)


class Language(nn.Module):
    """One layer a stage, over the tokens that the rank has."""

    def __init__(self, config, groups, stage, *, is_last):
        super().__init__()
        self.config = config
        self.groups = groups
        self.embedding = Embedding() if stage == 0 else None
        self.layer = weight(f"layer {stage}")
        self.is_last = is_last
        self.given = None

    def set_input_tensor(self, tensor):
        self.given = tensor

    def forward(self, decoder_input, labels, **_):
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        hidden = torch.tanh((self.given if decoder_input is None else decoder_input) @ self.layer)
        if not self.is_last:
            return hidden
        if self.config.sequence_parallel:
            hidden = gather_from_sequence_parallel_region(hidden, False, group=self.groups.tp)
        return loss_per_token(hidden, labels)


class Whole:
    """The model in one process."""

    def __init__(self, case):
        self.case, self.encoder, self.embedding = case, Encoder(), Embedding()
        self.layers = [weight(f"layer {stage}") for stage in range(case.language.get("pp", 1))]
        self.parameters = {"encoder": self.encoder.weight, "embedding": self.embedding.table}
        self.parameters |= {f"layer {at}": layer for at, layer in enumerate(self.layers)}

    def losses(self):
        """Of each micro-batch."""
        return losses_of(self.case, self.encoder, self.embedding, self.layers)

    def train(self, steps):
        """The losses and the gradients' norm of each step."""
        adam, found = torch.optim.Adam(self.parameters.values(), lr=LR), []
        for _ in range(steps):
            adam.zero_grad()
            losses = self.losses()
            torch.stack(losses).sum().backward()
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), MAX_NORM)
            adam.step()
            found.append(([loss.item() for loss in losses], norm.item()))
        return found


def whole_model(case):
    """The loss of each micro-batch and the gradients in one process, by name of a parameter."""
    whole = Whole(case)
    losses = whole.losses()
    torch.stack(losses).sum().backward()
    return [loss.item() for loss in losses], {name: each.grad for name, each in whole.parameters.items()}


def losses_of(case, encoder, embedding, layers):
    losses, samples = [], range(case.samples)
    for micro in range(MICRO_BATCHES):
        text = case.text(micro, samples)
        hidden = embedding(text).transpose(0, 1).clone()
        hidden[text == IMAGE] = torch.cat([encoder(case.pixels(micro, sample)) for sample in samples])
        hidden = hidden.transpose(0, 1)
        for layer in layers:
            hidden = torch.tanh(hidden @ layer)
        losses.append(loss_per_token(hidden, labels_of(text, micro, samples)).sum())
    return losses


def build(ctx, case, config):
    """This rank's part of the model."""
    from megatron.core.models.mimo import MimoModelConfig
    from megatron.core.models.mimo.submodules.vision import VisionModalitySubmodules
    from megatron.core.transformer import ModuleSpec

    from mimo_role.megatron import MimoModel

    role = ctx.role
    groups = ctx.megatron_process_groups("language") if role.has_language_module else None
    stage = ctx.coords("language")["pp"] if role.has_language_module else 0
    language = {"config": config, "groups": groups, "stage": stage, "is_last": role.is_last_stage("language")}
    model = MimoModel(
        MimoModelConfig(
            language_model_spec=ModuleSpec(Language, params=language),
            modality_submodules_spec={
                "vision": ModuleSpec(VisionModalitySubmodules, submodules={"encoders": {"encoder": ModuleSpec(Encoder)}})
            },
            special_token_ids={"vision": IMAGE},
            module_to_grid_map=ctx.megatron_grid_map(),
            kv_format="thd" if case.packed else "sbhd",
        ),
        cp_group=groups.cp if groups else None,
        tp_group=groups.tp if groups else None,
    )
    if case.ddp:
        wrap(ctx, model, config)
    return model


def wrap(ctx, model, config):
    """Put both modules into Megatron-Core's `DistributedDataParallel`, whose gradients are sums over lanes."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig

    def wrapped(module, name):
        return DistributedDataParallel(
            config, DistributedDataParallelConfig(), module, pg_collection=ctx.megatron_process_groups(name)
        )

    model.language_model = wrapped(model.language_model, "language")
    model.modality_submodules["vision"] = wrapped(model.modality_submodules["vision"], "vision")
    model.zero_grad_buffer()


def gradients_of_wrapped(ctx, model):
    """This rank's gradients, which the wrappers have summed."""
    language, vision = model.language_model, model.modality_submodules["vision"]
    language.finish_grad_sync()
    vision.finish_grad_sync()
    stage = ctx.coords("language")["pp"]
    found = {"encoder": vision.module.encoders["encoder"].weight, f"layer {stage}": language.module.layer}
    found |= {"embedding": language.module.embedding.table} if stage == 0 else {}
    return {name: parameter.main_grad for name, parameter in found.items()}


def inputs_of(ctx, case, micro, module=None) -> dict[str, Any]:
    """The arguments of the model's forward on this rank, for one of its modules."""
    module = module or next(iter(ctx.role.modules))
    own = lane_samples(case.samples, ctx.topology.grids[module].axis_size("dp"), ctx.coords(module)["dp"])
    if module == "vision":
        pixels = [case.pixels(micro, sample) for sample in own]
        pixels = torch.cat([each[ctx.owned_tokens("vision", len(each))] for each in pixels])
        text = case.text(micro, own) if case.has_text else None
        return {"input_ids": text, "modality_inputs": {"vision": {"encoder": {"pixels": pixels}}} if micro else None}
    text = case.text(micro, own)
    labels = labels_of(text, micro, own)
    if not case.packed:
        return {"input_ids": text, "labels": labels, "loss_mask": torch.ones(text.shape)}
    ends = torch.arange(len(own) + 1) * LENGTH
    text, labels = text.reshape(1, -1), labels.reshape(1, -1)
    packing = {"cu_seqlens_q": ends, "cu_seqlens_kv": ends}
    return {"input_ids": text, "labels": labels, "loss_mask": torch.ones(text.shape), "packing_kwargs": packing}


def output_of(ctx, case, model, micro):
    """The model's output for a micro-batch, with the token counts of an encoder's, and the loss mask."""
    output, mask = model(**inputs_of(ctx, case, micro))
    if not ctx.role.has_language_module and not case.has_text:
        lanes, lane = ctx.topology.grids["vision"].axis_size("dp"), ctx.coords("vision")["dp"]
        set_token_counts(output["vision"], case.counts(micro, lane_samples(case.samples, lanes, lane)))
    return output, mask


def summed_gradients(ctx, model):
    """This rank's gradients, added up over dp and cp, and over tp where its ranks have different tokens."""
    found = {}
    if ctx.role.has_modality_modules:
        ctx.sum_gradients({"vision": model.modality_submodules})
        found["encoder"] = model.modality_submodules["vision"].encoders["encoder"].weight.grad
    if not ctx.role.has_language_module:
        return found
    language, stage = model.language_model, ctx.coords("language")["pp"]
    ctx.sum_gradients({"language": language})
    if language.config.sequence_parallel:
        torch.distributed.all_reduce(language.layer.grad, group=language.groups.tp)
    found[f"layer {stage}"] = language.layer.grad
    return found | ({"embedding": language.embedding.table.grad} if stage == 0 else {})


def parameters_of(ctx, model):
    """This rank's parameters by name, detached."""
    found = {}
    if ctx.role.has_modality_modules:
        found["encoder"] = model.modality_submodules["vision"].encoders["encoder"].weight
    if ctx.role.has_language_module:
        language, stage = model.language_model, ctx.coords("language")["pp"]
        found[f"layer {stage}"] = language.layer
        found |= {"embedding": language.embedding.table} if stage == 0 else {}
    return {name: each.detach() for name, each in found.items()}
