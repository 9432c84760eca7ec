"""A small vision-language model for tests with data-parallel wrappers: on ranks by a schedule, and whole in one process."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mimo_role
from mimo_role import ActivationSpec, Samples, StageId, StageOutput, lane_samples
from mimo_role.pipeline.schedule import Schedule1F1B

HIDDEN, IMAGE_TOKENS, LAYERS = 5, 2, 3
EXACT = 1e-12


class Prompt(NamedTuple):
    number: int
    images: int
    words: int

    @property
    def tokens(self):
        return self.images * IMAGE_TOKENS + self.words


PROMPTS = [Prompt(number, number % 3, 1 + number % 4) for number in range(11)]
IMAGES_AT_THE_FRONT = [Prompt(number, 2 if number < 3 else 0, 2) for number in range(9)]


def drawn(name, *shape):
    generator = torch.Generator().manual_seed(sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 2**40)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) / 2


def drawn_parameters(module, name):
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(drawn(f"{name}.{key}", *parameter.shape))


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({str(number): nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64) for number in range(2)})
        drawn_parameters(self, "vision")

    def forward(self, pixels):
        """Embeddings, and an auxiliary loss."""
        hidden = torch.tanh(self.layers["0"](pixels))
        return self.layers["1"](hidden), (hidden**2).sum() / 50


class Language(nn.Module):
    def __init__(self, stage, stages):
        super().__init__()
        self.is_first = stage == 0
        if self.is_first:
            self.words = nn.Parameter(torch.zeros(7, HIDDEN, dtype=torch.float64))
            self.image_scale = nn.Parameter(torch.zeros(HIDDEN, dtype=torch.float64))  # used where there are images
        mine = range(stage * LAYERS // stages, (stage + 1) * LAYERS // stages)
        self.layers = nn.ModuleDict({str(number): nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64) for number in mine})
        drawn_parameters(self, "language")

    def merge(self, prompts, images):
        parts, taken = [], 0
        for prompt in prompts:
            count = prompt.images * IMAGE_TOKENS
            if count:
                parts.append(images[taken : taken + count] * self.image_scale)
            taken += count
            parts.append(self.words[torch.arange(prompt.number, prompt.number + prompt.words) % 7])
        return torch.cat(parts) if parts else self.words[:0]

    def forward(self, prompts, inputs):
        """Hidden states, and an auxiliary loss."""
        hidden = self.merge(prompts, inputs["vision"]) if self.is_first else inputs["language"]
        for layer in self.layers.values():
            hidden = hidden + torch.tanh(layer(hidden))
        return hidden, hidden.sum() / 70


def pixels_of(prompts):
    rows = [
        drawn(f"image {prompt.number} {number}", IMAGE_TOKENS, HIDDEN) for prompt in prompts for number in range(prompt.images)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, HIDDEN, dtype=torch.float64)


def loss_of(hidden, prompts):
    scales = torch.tensor([1.0 + prompt.number for prompt in prompts for _ in range(prompt.tokens)], dtype=torch.float64)
    return (scales[:, None] * hidden**2).sum() / 100


class Whole:
    """All modules in one process."""

    def __init__(self, stages, auxiliary=()):
        self.modules = {"vision": [Vision()], "language": [Language(stage, stages) for stage in range(stages)]}
        self.auxiliary = auxiliary

    def backward(self, prompts):
        """Gradients by module and name, and the auxiliary losses that count, by stage."""
        own = {}
        hidden, own[StageId("vision", 0)] = self.modules["vision"][0](pixels_of(prompts))
        inputs = {"vision": hidden}
        for stage, module in enumerate(self.modules["language"]):
            hidden, own[StageId("language", stage)] = module(prompts, inputs)
            inputs = {"language": hidden}
        own = {at: loss for at, loss in own.items() if at in self.auxiliary}
        (loss_of(hidden, prompts) + sum(own.values())).backward()
        return {key: parameter.grad for key, parameter in self.parameters().items()}, own

    def parameters(self):
        return {
            f"{name}.{key}": parameter
            for name, parts in self.modules.items()
            for part in parts
            for key, parameter in part.named_parameters()
        }


def in_parts(prompts, parts):
    return [[prompts[number] for number in lane_samples(len(prompts), parts, part)] for part in range(parts)]


def ddp(module, group, mesh, **settings):
    return DistributedDataParallel(module, process_group=group, **settings)


def fsdp(module, group, mesh):
    from torch.distributed.fsdp import fully_shard

    for layer in module.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    if hasattr(module, "set_reduce_scatter_unused_params"):  # torch 2.13 has it
        module.set_reduce_scatter_unused_params(True)  # a lane without images does not use them all
    return module


def unwrapped(module, group, mesh):
    return module


class Rank:
    """One rank's modules and schedule."""

    def __init__(self, wrap, *, given=True, auxiliary=(), around_forward=nullcontext, skips_empty=False, **settings):
        self.ctx = ctx = mimo_role.current()
        self.plain, self.wrapped = {}, {}
        for name in ctx.role.modules:
            stages = ctx.topology.grids[name].axis_size("pp")
            module = Vision() if name == "vision" else Language(ctx.coords(name)["pp"], stages)
            self.plain[name] = module
            self.wrapped[name] = wrap(module, ctx.group(name, "dp"), ctx.mesh(name)["dp"])
        self.auxiliary = auxiliary
        self.around_forward = around_forward
        self.skips_empty = skips_empty
        modules = self.wrapped if given else {}
        self.schedule = Schedule1F1B(
            ctx, run=self.run, spec_of=self.spec_of, loss_of=self.loss_of, **({"modules": modules} | settings)
        )

    def lanes(self, name):
        return self.ctx.topology.grids[name].axis_size("dp")

    def lane(self, name, count):
        return lane_samples(count, self.lanes(name), self.ctx.coords(name)["dp"])

    def spec_of(self, at, prompts):
        if at.module == "language":
            samples = Samples(len(prompts), tokens=tuple(prompt.tokens for prompt in prompts))
        else:
            lane_of = {
                n: lane
                for lane in range(self.lanes("language"))
                for n in lane_samples(len(prompts), self.lanes("language"), lane)
            }
            lanes = tuple(lane_of[number] for number, prompt in enumerate(prompts) for _ in range(prompt.images))
            samples = Samples(len(lanes), tokens=(IMAGE_TOKENS,) * len(lanes), destination_lanes=lanes)
        return ActivationSpec(samples=samples, token_shape=(HIDDEN,), dtype=torch.float64)

    def run(self, name, prompts, inputs):
        with self.around_forward(self.wrapped[name]):
            if name == "vision":
                images = pixels_of(prompts).view(-1, IMAGE_TOKENS, HIDDEN)
                mine = self.lane("vision", len(images))
                pixels = images[mine.start : mine.stop].flatten(0, 1)
                if self.skips_empty and not len(pixels):
                    return pixels
                output, loss = self.wrapped["vision"](pixels)
            else:
                output, loss = self.wrapped["language"]([prompts[n] for n in self.lane("language", len(prompts))], inputs)
        return StageOutput(output, loss) if StageId(name, self.ctx.coords(name)["pp"]) in self.auxiliary else output

    def loss_of(self, hidden, prompts):
        return loss_of(hidden, [prompts[number] for number in self.lane("language", len(prompts))])

    def parameters(self):
        """By module and name."""
        return {f"{name}.{key}": p for name, module in self.plain.items() for key, p in module.named_parameters()}

    def gradients(self, *, summed=False):
        """By module and name, as sums over lanes. The wrappers compute means unless `summed` is set."""
        return {
            key: in_full(parameter.grad) * (1 if summed else self.lanes(key.partition(".")[0]))
            for key, parameter in self.parameters().items()
        }

    def zero_grad(self):
        for parameter in self.parameters().values():
            parameter.grad = None

    def difference(self, prompts, parts, *, summed=False):
        """Of a step's gradients from one process's."""
        self.zero_grad()
        self.schedule.step(in_parts(prompts, parts))
        return difference(self.gradients(summed=summed), self.whole(prompts))

    def whole(self, prompts):
        return Whole(self.ctx.topology.grids["language"].axis_size("pp"), self.auxiliary).backward(prompts)[0]


def in_full(tensor):
    return tensor.full_tensor() if isinstance(tensor, dist.tensor.DTensor) else tensor


def difference(found, expected):
    """Of tensors by name, relative to the largest number of each; at most `EXACT`."""
    off = {
        key: ((tensor - expected[key]).abs().max() / expected[key].abs().max().clamp_min(1e-3)).item()
        for key, tensor in found.items()
    }
    assert max(off.values()) <= EXACT, off
    return max(off.values())
