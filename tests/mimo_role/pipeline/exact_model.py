"""A model of modules in any graph whose numbers are whole: sums in any order give the same bits."""

from typing import NamedTuple

import torch

from mimo_role import ActivationSpec, StageId, lane_samples

HIDDEN = 3
TOKENS = {"vision": 3, "audio": 2}
"""Of the raw inputs of modules that take no other's output."""


class MicroBatch(NamedTuple):
    """Samples `first .. first + count - 1`."""

    first: int
    count: int


def in_parts(*counts):
    firsts = [sum(counts[:number]) for number in range(len(counts))]
    return [MicroBatch(first, count) for first, count in zip(firsts, counts, strict=True)]


def raw(module, samples):
    numbers = torch.arange(TOKENS[module] * HIDDEN, dtype=torch.float64) + torch.tensor(samples, dtype=torch.float64)[:, None]
    return ((numbers * 7 + len(module)) % 5 - 2).view(len(samples), TOKENS[module], HIDDEN)


def weights(at):
    return (torch.arange(HIDDEN, dtype=torch.float64) + at.stage + len(at.module)) % 3 + 1


def compute(weight, hidden):
    return (hidden * weight - 1).abs() - 2


def loss_of(module, output, samples):
    scale = torch.tensor(samples, dtype=torch.float64)[:, None, None] + len(module)
    return (scale * output * output).sum()


def order(topology):
    """The modules, each after those whose outputs it takes."""
    found = []
    while len(found) < len(topology.grids):
        found += [name for name in topology.grids if name not in found and set(topology.after[name]) <= set(found)]
    return found


def stages_of(topology, module):
    return [StageId(module, stage) for stage in range(topology.grids[module].axis_size("pp"))]


def tokens_of(topology, module):
    return TOKENS[module] if module in TOKENS else sum(tokens_of(topology, source) for source in topology.after[module])


def spec_of(topology, module, count):
    return ActivationSpec.of(count, (tokens_of(topology, module), HIDDEN), torch.float64)


def merge(topology, module, inputs):
    return torch.cat([inputs[source] for source in topology.after[module]], dim=1)


def own_samples(ctx, module, batch):
    samples = lane_samples(batch.count, ctx.topology.grids[module].axis_size("dp"), ctx.coords(module)["dp"])
    return range(batch.first + samples.start, batch.first + samples.stop)


def whole(topology, count):
    """The sum of the losses, and the gradient of each stage's weights, of one process."""
    parameters = {at: weights(at).requires_grad_() for module in topology.grids for at in stages_of(topology, module)}
    outputs, losses = {}, []
    for module in order(topology):
        hidden = merge(topology, module, outputs) if topology.after[module] else raw(module, range(count))
        for at in stages_of(topology, module):
            hidden = compute(parameters[at], hidden)
        outputs[module] = hidden
        if module in topology.module_graph.ends:
            losses.append(loss_of(module, hidden, range(count)))
    sum(losses).backward()
    return sum(losses).item(), {at: parameter.grad for at, parameter in parameters.items()}
