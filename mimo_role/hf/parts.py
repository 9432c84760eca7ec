"""The parts of a model that ranks run: an encoder, or a stage of the language model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

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


class _Places(NamedTuple):
    """Where the embeddings of one encoder go."""

    mask: torch.Tensor
    """bool `[samples, tokens]`."""
    counts: list[int]
    """Of each sample."""


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
        full = _with_a_sample(batch)
        # From the batch on the CPU: on a GPU, to count would be to wait.
        places = {name: _places_of(full["input_ids"], encoder, self._config) for name, encoder in self._family.encoders.items()}
        owned = self._parallel.owned(full["input_ids"].shape[1])
        text: Model = self.get_submodule(self._family.language)
        if self._is_first:
            hidden = self._embedded(inputs, full["input_ids"].to(device), places)[:, owned]
        else:
            hidden = self._received(inputs, len(full["input_ids"]), len(owned))
        found = text(
            inputs_embeds=hidden,
            use_cache=False,
            **self._arguments(full, owned),
            **self._levels(inputs, places, owned),
        ).last_hidden_state
        output: torch.Tensor = self.get_submodule(self._family.head)(found) if self._is_last else found
        return output[:0] if is_blank else output

    def _embedded(self, inputs: Mapping[str, Any], ids: torch.Tensor, places: Mapping[str, _Places]) -> torch.Tensor:
        """The embeddings of all tokens, with those of encoders in their places."""
        text: Model = self.get_submodule(self._family.language)
        hidden: torch.Tensor = text.embed_tokens(ids)
        for name, of_encoder in places.items():
            embeddings = self._whole_of(inputs[name]["embeddings"], name, of_encoder)
            hidden = hidden.masked_scatter(of_encoder.mask.to(ids.device)[..., None], embeddings.to(hidden.dtype))
        return hidden

    def _received(self, inputs: Mapping[str, Any], samples: int, owned: int) -> torch.Tensor:
        """What the stage before has sent."""
        hidden: torch.Tensor = inputs["language"]
        shape = samples, owned, hidden.shape[-1]
        return hidden.view(shape) if len(hidden) else hidden.new_zeros(shape)

    def _arguments(self, batch: Mapping[str, Any], owned: torch.Tensor) -> dict[str, Any]:
        """The mask and the positions; positions are computed on the CPU, since families read single numbers of the batch."""
        base = self._whole[0].get_submodule(self._family.language.rpartition(".")[0])
        positions = self._family.positions(base, batch)
        positions = None if positions is None else positions.to(owned.device)
        mask = batch["attention_mask"].to(owned.device)
        if self._parallel.size == 1:
            return {"attention_mask": mask.long(), **({} if positions is None else {"position_ids": positions})}
        own = owned[None] if positions is None else positions[..., owned]
        return {"attention_mask": mask_of(mask, owned), "position_ids": own}

    def _levels(self, inputs: Mapping[str, Any], places: Mapping[str, _Places], owned: torch.Tensor) -> Mapping[str, Any]:
        """What is added to the output of some of the layers; zeros for layers of other stages."""
        for name, encoder in self._family.encoders.items():
            own = [number for number, layer in enumerate(encoder.levels(self._config)) if layer in self._layers]
            if not own:
                continue
            mask = places[name].mask.to(owned.device)
            numbers = (mask.flatten().cumsum(0) - 1).view(mask.shape)[:, owned][mask[:, owned]]
            found = {number: self._whole_of(inputs[name][f"level_{number}"], name, places[name])[numbers] for number in own}
            nothing = torch.zeros_like(found[own[0]])
            levels = [found.get(number, nothing) for number in range(max(own) + 1)]
            return self._family.with_levels(mask[:, owned], levels)
        return {}

    def _whole_of(self, tensor: torch.Tensor, name: str, places: _Places) -> torch.Tensor:
        """The embeddings of all places.

        Raises:
            HfError: another number of embeddings came; to put them in would leave some out.
        """
        expected = sum(len(self._parallel.owned(count)) for count in places.counts)
        if len(tensor) != expected:
            raise HfError(
                f"{len(tensor)} embeddings came from {name!r}, for {expected} places in the text; give both modules the same "
                "samples, with the same input_ids"
            )
        return self._parallel.gather_packed(tensor, places.counts)


def _with_a_sample(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """A batch without samples becomes one of padding, so that the collectives of its lane's ranks match."""
    ids = batch["input_ids"]
    if len(ids):
        return batch
    blank = ids.new_zeros(1, ids.shape[1])
    return {**batch, "input_ids": blank, "attention_mask": torch.ones_like(blank, dtype=torch.bool)}


def _places_of(ids: torch.Tensor, encoder: Encoder, config: Config) -> _Places:
    mask = ids == encoder.token_id(config)
    return _Places(mask, mask.sum(1).tolist())
