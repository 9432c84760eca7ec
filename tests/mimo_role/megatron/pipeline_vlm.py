"""A small model of several modules for Megatron-Core's schedule: one rank's part of it, and all of it in one process."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from mimo_role import TokenSplit, lane_samples
from mimo_role.megatron import set_token_counts

HIDDEN, LENGTH, MICRO_BATCHES = 4, 16, 4


@dataclass(frozen=True)
class Case:
    """A layout, and what crosses in it."""

    vision: Mapping[str, int]
    language: Mapping[str, int]
    audio: Mapping[str, Any] | None = None
    samples: int = 6
    """Of a micro-batch."""
    fixed: bool = False
    """Whether all samples have equally many tokens."""
    dims: int = 2
    """Of what encoders return."""
    sequence_parallel: bool = False
    frozen: tuple[str, ...] = ()
    deallocate: bool = True
    splits: Mapping[str, TokenSplit] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    has_text_only: bool = True
    """Whether one micro-batch has text only, where token counts differ."""

    @property
    def modules(self):
        found = {"vision": dict(self.vision), "audio": self.audio, "language": dict(self.language)}
        if self.is_chain:
            found["language"]["after"] = ("vision", "audio")
        return {name: sizes for name, sizes in found.items() if sizes is not None}

    @property
    def is_chain(self):
        """Whether audio takes the output of vision, which goes to the language model too."""
        return "after" in (self.audio or {})

    def counts(self, name, micro):
        """The tokens of each sample."""
        if self.fixed:
            return [4] * self.samples
        random = Random(f"{'vision' if self.is_chain else name} {micro}")
        return [0 if micro == 2 and self.has_text_only else random.randrange(6) for _ in range(self.samples)]


def drawn(what, *shape, dtype=torch.float64):
    """Numbers that only depend on what they are for."""
    generator = torch.Generator().manual_seed(Random(what).randrange(1 << 60))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


def inputs_of(case, name, micro, sample):
    return drawn(f"{name} {micro} {sample}", case.counts(name, micro)[sample], HIDDEN, dtype=case.dtype)


def parameters_of(case, name, stages):
    """The weights of some of a module's stages."""
    made = {f"{name}-{stage}": drawn(f"{name} weight {stage}", HIDDEN, HIDDEN, dtype=case.dtype) / 2 for stage in stages}
    if name == "language" and 0 in stages:
        made["language-text"] = drawn("text", LENGTH, HIDDEN, dtype=case.dtype)
    return torch.nn.ParameterDict({key: torch.nn.Parameter(value, name not in case.frozen) for key, value in made.items()})


def sequences(case, text, encoded, micro, samples):
    """`[LENGTH, samples, HIDDEN]`: in each sample the tokens of the encoders, then text."""
    flows, columns = {name: iter(rows) for name, rows in encoded.items()}, []
    for _ in samples:
        tokens = [next(flow) for flow in flows.values()]
        columns.append(torch.cat([*tokens, text[sum(map(len, tokens)) :]]))
    return torch.stack(columns, dim=1)


def loss_of(case, hidden, micro, samples, positions):
    """A sum that depends on the place of every number."""
    weight = drawn(f"loss {micro}", LENGTH, case.samples, HIDDEN, dtype=case.dtype)
    return (hidden * weight[positions][:, list(samples)]).sum()


def whole_model(case):
    """The loss and gradients of a step in one process."""
    encoders = [name for name in case.modules if name != "language"]
    parts = {name: parameters_of(case, name, range(sizes.get("pp", 1))) for name, sizes in case.modules.items()}
    samples, losses = range(case.samples), []
    for micro in range(MICRO_BATCHES):
        encoded = {}
        for name in encoders:
            encoded[name] = []
            for sample in samples:
                is_first = not (case.is_chain and name == "audio")
                found = inputs_of(case, name, micro, sample) if is_first else encoded["vision"][sample]
                for stage in range(case.modules[name].get("pp", 1)):
                    found = torch.tanh(found @ parts[name][f"{name}-{stage}"])
                encoded[name].append(found)
        hidden = sequences(case, parts["language"]["language-text"], encoded, micro, samples)
        for stage in range(case.language.get("pp", 1)):
            hidden = torch.tanh(hidden @ parts["language"][f"language-{stage}"])
        losses.append(loss_of(case, hidden, micro, samples, range(LENGTH)))
    torch.stack(losses).sum().backward()
    gradients = {key: weight.grad for part in parts.values() for key, weight in part.items() if weight.requires_grad}
    return [loss.item() for loss in losses], gradients


class RankPart(torch.nn.Module):
    """One rank's stages, as Megatron-Core's schedule takes a model."""

    def __init__(self, ctx, case, config):
        super().__init__()
        self.config = config
        self.ctx = ctx
        self.case = case
        self.coords = {name: ctx.coords(name) for name in ctx.role.modules}
        self.parts = torch.nn.ModuleDict(
            {name: parameters_of(case, name, [coords["pp"]]) for name, coords in self.coords.items()}
        )
        self.given = {}

    def set_input_tensor(self, tensors):
        # Megatron-Core's own communicator receives a list of one between stages.
        self.given = {name: each[0] if isinstance(each, list) else each for name, each in tensors[0].items()}

    def forward(self, micro):
        if "language" in self.coords:
            return self.language(micro)
        return {name: self.encode(name, micro) for name in self.coords}

    def samples(self, name):
        lanes = self.ctx.topology.grids[name].axis_size("dp")
        return lane_samples(self.case.samples, lanes, self.coords[name]["dp"])

    def encode(self, name, micro):
        own, counts = self.samples(name), self.case.counts(name, micro)
        if (stage := self.coords[name]["pp"]) == 0 and "vision" in self.given:
            hidden = self.given["vision"]
        elif stage == 0:
            split = self.case.splits.get(name, TokenSplit())
            pieces = [
                inputs_of(self.case, name, micro, sample)[self.ctx.owned_tokens(name, counts[sample], split)] for sample in own
            ]
            hidden = torch.cat(pieces) if self.case.dims == 2 else torch.stack(pieces, dim=1)
        else:
            hidden = self.given[name]
        found = torch.tanh(hidden @ self.parts[name][f"{name}-{stage}"])
        if self.case.dims == 2 and not self.case.fixed:
            set_token_counts(found, [counts[sample] for sample in own])
        return found

    def language(self, micro):
        coords, own = self.coords["language"], self.samples("language")
        positions = self.ctx.owned_tokens("language", LENGTH, TokenSplit(cp_order="zigzag"))
        if coords["pp"] == 0:
            hidden = self.first_hidden(micro, own)[positions]
            hidden = self.scattered(hidden) if self.case.sequence_parallel else hidden
        else:
            hidden = self.given["language"]
        hidden = torch.tanh(hidden @ self.parts["language"][f"language-{coords['pp']}"])
        if not self.ctx.role.is_last_stage("language"):
            return {"language": hidden}
        hidden = self.gathered(hidden) if self.case.sequence_parallel else hidden
        return loss_of(self.case, hidden, micro, own, positions)

    def first_hidden(self, micro, own):
        encoded = {}
        for name in self.case.modules:
            if name != "language" and self.case.dims == 2:
                counts = [self.case.counts(name, micro)[sample] for sample in own]
                encoded[name] = torch.split(self.given[name], counts)
            elif name != "language":
                encoded[name] = self.given[name].unbind(dim=1)
        return sequences(self.case, self.parts["language"]["language-text"], encoded, micro, own)

    def scattered(self, hidden):
        from megatron.core.tensor_parallel import scatter_to_sequence_parallel_region

        return scatter_to_sequence_parallel_region(hidden, group=self.ctx.group("language", "tp"))

    def gathered(self, hidden):
        from megatron.core.tensor_parallel import gather_from_sequence_parallel_region

        return gather_from_sequence_parallel_region(hidden, False, group=self.ctx.group("language", "tp"))

    def sum_gradients(self):
        """Add up over lanes, cp, and in the sequence-parallel region over tp; return them by name."""
        self.ctx.sum_gradients(self.parts)
        found = {}
        for name, part in self.parts.items():
            for key, weight in part.items():
                found[key] = weight.grad
                if self.divides_over_tp(name) and key != "language-text":
                    torch.distributed.all_reduce(weight.grad, group=self.ctx.group(name, "tp"))
        return found

    def divides_over_tp(self, name):
        if name == "language":
            return self.case.sequence_parallel
        return self.case.splits.get(name, TokenSplit()).sequence_parallel
