"""The encoders and the language model, each buildable whole or as one stage of a pipeline.

Shapes: B samples, T tokens, H the module's width.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from data import CAPTION_TOKENS, MODALITIES, VOCABULARY, placeholder_id, sequence_tokens
from torch import nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large one module is."""

    width: int
    depth: int
    heads: int
    """Attention heads; with 0 the blocks have no attention and treat every token for itself."""

    @property
    def inner_width(self) -> int:
        """The width between the two feed-forward layers."""
        return 4 * self.width

    def layers_of(self, stage: int, stages: int) -> range:
        """The layers of one pipeline stage."""
        return range(stage * self.depth // stages, (stage + 1) * self.depth // stages)


ENCODERS = {
    "vision": Sizes(width=48, depth=2, heads=4),
    "profile": Sizes(width=32, depth=2, heads=0),
}
LANGUAGE = Sizes(width=48, depth=2, heads=4)


@dataclass(frozen=True)
class Stage:
    """The part of a module that one pipeline stage holds."""

    layers: Sequence[int]
    is_first: bool = True
    is_last: bool = True

    @classmethod
    def whole(cls, sizes: Sizes) -> "Stage":
        """All of a module."""
        return cls(sizes.layers_of(0, 1))


class Attention(nn.Module):
    """Multi-head self-attention. Works on the heads that its projections hold: all, or a tensor-parallel rank's share."""

    def __init__(self, sizes: Sizes, *, causal: bool) -> None:
        super().__init__()
        self.head_width = sizes.width // sizes.heads
        self.causal = causal
        self.query = nn.Linear(sizes.width, sizes.width)
        self.key = nn.Linear(sizes.width, sizes.width)
        self.value = nn.Linear(sizes.width, sizes.width)
        self.output = nn.Linear(sizes.width, sizes.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        query, key, value = (
            projection(hidden).unflatten(-1, (-1, self.head_width)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers, applied to every token for itself."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.expand = nn.Linear(sizes.width, sizes.inner_width)
        self.contract = nn.Linear(sizes.inner_width, sizes.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.contract(functional.gelu(self.expand(hidden)))


class Block(nn.Module):
    """A pre-norm transformer block; without heads, its feed-forward half alone."""

    def __init__(self, sizes: Sizes, *, causal: bool) -> None:
        super().__init__()
        self.attention = Attention(sizes, causal=causal) if sizes.heads else None
        self.attention_norm = nn.LayerNorm(sizes.width) if sizes.heads else None
        self.feed_forward = FeedForward(sizes)
        self.feed_forward_norm = nn.LayerNorm(sizes.width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]."""
        if self.attention is not None and self.attention_norm is not None:
            hidden = hidden + self.attention(self.attention_norm(hidden))
        return hidden + self.feed_forward(self.feed_forward_norm(hidden))


def _blocks(sizes: Sizes, stage: Stage, *, causal: bool) -> nn.ModuleDict:
    # Keyed by the layer's number in the whole module: parameter names do not depend on the stages.
    return nn.ModuleDict({str(layer): Block(sizes, causal=causal) for layer in stage.layers})


class Encoder(nn.Module):
    """One stage of a modality's encoder. The first reads raw input; the last projects to the language model's width."""

    def __init__(self, modality: str, stage: Stage) -> None:
        super().__init__()
        sizes, raw = ENCODERS[modality], MODALITIES[modality]
        self.input = nn.Linear(raw.features, sizes.width) if stage.is_first else None
        self.position = nn.Embedding(raw.tokens, sizes.width) if stage.is_first else None
        self.blocks = _blocks(sizes, stage, causal=False)
        self.norm = nn.LayerNorm(sizes.width) if stage.is_last else None
        self.projection = nn.Linear(sizes.width, LANGUAGE.width) if stage.is_last else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raw input [B, T, features] or the stage before's [B, T, H] -> [B, T, H], in the end of the language's width."""
        if self.input is not None and self.position is not None:
            hidden = self.input(hidden) + self.position.weight
        for block in self.blocks.values():
            hidden = block(hidden)
        if self.norm is not None and self.projection is not None:
            hidden = self.projection(self.norm(hidden))
        return hidden


class LanguageModel(nn.Module):
    """One stage of a causal language model over letters. The first holds the embedding, the last the head."""

    def __init__(self, modalities: Sequence[str], stage: Stage) -> None:
        super().__init__()
        width = LANGUAGE.width
        self.embedding = nn.Embedding(len(VOCABULARY), width) if stage.is_first else None
        self.position = nn.Embedding(sequence_tokens(modalities), width) if stage.is_first else None
        self.blocks = _blocks(LANGUAGE, stage, causal=True)
        self.norm = nn.LayerNorm(width) if stage.is_last else None
        self.head = nn.Linear(width, len(VOCABULARY)) if stage.is_last else None

    def merge(self, tokens: torch.Tensor, embeddings: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embed tokens [B, T], with each modality's embeddings [B, its tokens, H] at its placeholders -> [B, T, H]."""
        assert self.embedding is not None
        assert self.position is not None
        hidden = self.embedding(tokens)
        for name, embedding in embeddings.items():
            hidden = hidden.masked_scatter((tokens == placeholder_id(name)).unsqueeze(-1), embedding)
        return hidden + self.position.weight

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, T, H] -> [B, T, H]; on the last stage logits of the caption's tokens, [B, CAPTION_TOKENS, vocabulary]."""
        for block in self.blocks.values():
            hidden = block(hidden)
        if self.norm is not None and self.head is not None:
            hidden = self.head(self.norm(hidden[:, -CAPTION_TOKENS:]))
        return hidden


@torch.no_grad()
def initialize(module: nn.Module, name: str, seed: int) -> None:
    """Draw every parameter from the seed and its full name, so that no layout changes any of them."""
    for parameter_name, parameter in module.named_parameters(prefix=name):
        if parameter.dim() > 1:
            digest = hashlib.sha256(f"{seed}/{parameter_name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            parameter.normal_(std=_standard_deviation(parameter_name, parameter.shape[-1]), generator=generator)
        else:
            parameter.fill_(1.0 if parameter_name.endswith("norm.weight") else 0.0)


def _standard_deviation(parameter_name: str, inputs: int) -> float:
    if parameter_name.endswith(("embedding.weight", "position.weight")):
        return 0.5
    # What a block adds to the residual stream starts small.
    added = parameter_name.endswith(("output.weight", "contract.weight"))
    return (0.5 if added else 1.0) * inputs**-0.5
