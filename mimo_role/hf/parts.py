"""The parts of a model that ranks run: an encoder, or a stage of the language model."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mimo_role.errors import HfError
from mimo_role.hf.building import layers_of, put_into
from mimo_role.hf.context_parallel import ContextParallel, mask_of
from mimo_role.hf.family import Config, Encoder, Family, Inputs, Model


class EncoderPart(nn.Module):
    """A tower and its projector, under the names that they have in the whole model."""

    def __init__(self, model: Model, encoder: Encoder, config: Config, dtype: torch.dtype) -> None:
        """
        Args:
            model: the whole one, without what this rank does not run.
            encoder: what to take of it.
            config: the whole model's.
            dtype: of the parameters.
        """
        super().__init__()
        put_into(self, model, encoder.paths)
        self._whole = (model,)  # not a child, which would add names
        self._encoder, self._config, self._dtype = encoder, config, dtype

    def forward(self, batch: Mapping[str, Any], _inputs: Mapping[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
        """The embeddings of a lane's samples, and what layers of the language model take.

        Raises:
            HfError: `embed` returns something else, or other numbers of embeddings than the texts have places for; or the
                inputs of `blank` do not fit the encoder.
        """
        if batch["inputs"] is None:
            return {name: tensor[:0] for name, tensor in self._embed_blank(device).items()}
        embedded, expected = self._embed(batch["inputs"], device), sum(batch["tokens"])
        for name, tensor in embedded.items():
            if len(tensor) != expected:
                raise HfError(
                    f"embed returned {list(tensor.shape)} as {name}; it is [tokens, width], and the texts of the lane's "
                    f"samples have places for {expected} tokens"
                )
        return embedded

    def _embed_blank(self, device: torch.device) -> dict[str, torch.Tensor]:
        try:
            return self._embed(self._encoder.blank(self._config, self._dtype), device)
        except Exception as error:
            raise HfError(
                f"the encoder fails on the inputs of `blank`, which a lane without any gets: {type(error).__name__}: {error}"
            ) from error

    def _embed(self, inputs: Inputs, device: torch.device) -> dict[str, torch.Tensor]:
        """What the family's function returns, each `[tokens, width]`."""
        moved = {
            name: tensor.to(device, self._dtype if tensor.is_floating_point() else None) for name, tensor in inputs.items()
        }
        model = self._whole[0].get_submodule(self._encoder.paths[0].rpartition(".")[0])
        embedded = self._encoder.embed(model, moved)
        if not isinstance(embedded, Mapping) or "embeddings" not in embedded:
            raise HfError(f'embed returned {type(embedded).__name__}; it returns {{"embeddings": a tensor [tokens, width]}}')
        for name, tensor in embedded.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dim() != 2:
                shown = list(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
                raise HfError(f"embed returned {shown} as {name}; it is one tensor [tokens, width], sample after sample")
        return dict(embedded)


class LanguagePart(nn.Module):
    """One stage of the language model, under the names that it has in the whole model."""

    def __init__(
        self, model: Model, family: Family, config: Config, parallel: ContextParallel, stage: int, stages: int
    ) -> None:
        """
        Args:
            model: the whole one, without what this rank does not run.
            family: the model's.
            config: the whole model's.
            parallel: how its ranks divide the tokens.
            stage: of this rank.
            stages: their number.
        """
        super().__init__()
        is_last = stage == stages - 1
        put_into(self, model, [family.language, *([family.head] if is_last else [])])
        self._whole = (model,)
        self._family, self._config, self._parallel = family, config, parallel
        self._is_first, self._is_last = stage == 0, is_last
        self._layers = layers_of(family.text_config(config).num_hidden_layers, stage, stages)

    def own_labels(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The labels of this rank's tokens, each that of the next token, int64 `[samples, own tokens]`."""
        labels: torch.Tensor = batch["labels"]
        return labels[:, self._parallel.owned(labels.shape[1]).to(labels.device)]

    def forward(self, batch: Mapping[str, Any], inputs: Mapping[str, Any], device: torch.device) -> torch.Tensor:
        """Hidden states `[samples, own tokens, width]`, or on the last stage logits `[samples, own tokens, words]`."""
        is_blank = not len(batch["input_ids"])
        on_device = self._on_device(batch, device)
        ids: torch.Tensor = on_device["input_ids"]
        owned = self._parallel.owned(ids.shape[1])
        text: Model = self.get_submodule(self._family.language)
        found = text(
            inputs_embeds=self._embedded(inputs, ids)[:, owned] if self._is_first else self._received(inputs, ids, owned),
            use_cache=False,
            **self._arguments(on_device, owned),
            **self._levels(inputs, ids, owned),
        ).last_hidden_state
        output: torch.Tensor = self.get_submodule(self._family.head)(found) if self._is_last else found
        return output[:0] if is_blank else output

    def _on_device(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """A batch without samples becomes one of padding, so that the collectives of this lane's ranks match."""
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        if not len(moved["input_ids"]):
            moved["input_ids"] = moved["input_ids"].new_zeros(1, moved["input_ids"].shape[1])
            moved["attention_mask"] = torch.ones_like(moved["input_ids"], dtype=torch.bool)
        return moved

    def _embedded(self, inputs: Mapping[str, Any], ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of all tokens, with those of encoders in their places."""
        text: Model = self.get_submodule(self._family.language)
        hidden: torch.Tensor = text.embed_tokens(ids)
        for name, encoder in self._family.encoders.items():
            embeddings = self._whole_of(inputs[name]["embeddings"], ids, encoder)
            places = ids == encoder.token_id(self._config)
            hidden = hidden.masked_scatter(places[..., None], embeddings.to(hidden.dtype))
        return hidden

    def _received(self, inputs: Mapping[str, Any], ids: torch.Tensor, owned: torch.Tensor) -> torch.Tensor:
        """What the stage before has sent."""
        hidden: torch.Tensor = inputs["language"]
        shape = len(ids), len(owned), hidden.shape[-1]
        return hidden.view(shape) if len(hidden) else hidden.new_zeros(shape)

    def _arguments(self, batch: Mapping[str, Any], owned: torch.Tensor) -> dict[str, Any]:
        mask = batch["attention_mask"]
        base = self._whole[0].get_submodule(self._family.language.rpartition(".")[0])
        positions = self._family.positions(base, batch)
        if self._parallel.size == 1:
            return {"attention_mask": mask.long(), **({} if positions is None else {"position_ids": positions})}
        own = owned[None] if positions is None else positions[..., owned]
        return {"attention_mask": mask_of(mask, owned), "position_ids": own}

    def _levels(self, inputs: Mapping[str, Any], ids: torch.Tensor, owned: torch.Tensor) -> Mapping[str, Any]:
        """What is added to the output of some of the layers; zeros for layers of other stages."""
        for name, encoder in self._family.encoders.items():
            layers = list(encoder.levels(self._config))
            own = [number for number, layer in enumerate(layers) if layer in self._layers]
            if not own:
                continue
            places = ids == encoder.token_id(self._config)
            numbers = (places.flatten().cumsum(0) - 1).view(places.shape)[:, owned][places[:, owned]]
            found = {number: self._whole_of(inputs[name][f"level_{number}"], ids, encoder)[numbers] for number in own}
            nothing = torch.zeros_like(found[own[0]])
            levels = [found.get(number, nothing) for number in range(max(own) + 1)]
            return self._family.with_levels(places[:, owned], levels)
        return {}

    def _whole_of(self, tensor: torch.Tensor, ids: torch.Tensor, encoder: Encoder) -> torch.Tensor:
        lengths = (ids == encoder.token_id(self._config)).sum(1).tolist() if self._parallel.size > 1 else []
        return self._parallel.gather_packed(tensor, lengths)
