"""What mimo_role has to know of a family of models of transformers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

Config: TypeAlias = Any
"""A `transformers.PreTrainedConfig`."""
Model: TypeAlias = Any
"""A `transformers.PreTrainedModel`, or a part of one."""
Sample: TypeAlias = Mapping[str, torch.Tensor]
"""A sample as a processor returns it, without the dimension of the batch: `input_ids` `[tokens]`, `labels` `[tokens]`, and what
its images or sounds need."""
Inputs: TypeAlias = dict[str, torch.Tensor]
"""What an encoder gets: the arguments of its function in transformers."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """One encoder of a family: a tower and what projects its output to the width of the language model."""

    paths: Sequence[str]
    """Its modules in the model, such as `model.vision_tower` and `model.multi_modal_projector`."""
    token_id: Callable[[Config], int]
    """The token in `input_ids` in whose places its embeddings go."""
    join: Callable[[Config, Sequence[Sample]], Inputs | None]
    """The inputs of a lane's samples, with and without images, in their order, as tensors; `None` if none has any."""
    count: Callable[[Config, Sample], int | None] = lambda _config, _sample: None
    """How many embeddings the inputs of one sample become, to be compared with its text; `None` if their shapes do not show
    it: then only sums over the samples of a micro-batch are compared."""
    blank: Callable[[Config, torch.dtype], Inputs]
    """Any inputs that the encoder takes, as small as possible. A lane without any runs the encoder on these, so that its
    ranks' collectives match."""
    embed: Callable[[Model, Inputs], Mapping[str, torch.Tensor]]
    """`embed(model, inputs)` runs it: `{"embeddings": [tokens, width]}`, sample after sample, and more such tensors if layers
    of the language model take some (`levels`). `model` is the parent of the first of `paths`."""
    tower: str
    """The path of its tower, whose config may have a plan for tensor parallelism."""
    levels: Callable[[Config], Sequence[int]] = lambda _config: ()
    """For each of the further tensors `level_0`, `level_1`, ..., the layer of the language model after which it is added."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the parts of a model are, and what its language model takes."""

    model_types: Sequence[str]
    """`model_type` of the configs."""
    encoders: Mapping[str, Encoder]
    """By the name of the module in a job: `vision`, `audio`."""
    language: str
    """The path of the language model without its head; it has `embed_tokens`, `layers` and `norm`."""
    head: str = "lm_head"
    """The path of the layer that returns logits."""
    model_class: Callable[[], Any]
    """Imports and returns the class of the whole model."""
    tp_plan: Callable[[Config], Mapping[str, str]] = lambda config: dict(config.base_model_tp_plan or {})
    """From the config of the language model, the plan for tensor parallelism in transformers' words."""
    positions: Callable[[Model, Mapping[str, Any]], torch.Tensor | None] = lambda _model, _batch: None
    """`positions(model, batch)`: the position ids of a padded batch, `[..., samples, tokens]`; `None` if they count up."""
    position_inputs: Sequence[str] = ()
    """Fields of a sample, one row for each image, of which `positions` needs all, such as `image_grid_thw`."""
    with_levels: Callable[[torch.Tensor, list[torch.Tensor]], Mapping[str, Any]] = lambda _mask, _levels: {}
    """`with_levels(mask, levels)`: the arguments with which the language model adds `levels`, one for each of its first layers,
    where `mask` `[samples, tokens]` is true."""

    def text_config(self, config: Config) -> Config:
        """The language model's part of a config."""
        return config.get_text_config()
