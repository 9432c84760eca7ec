"""A vision encoder and a language model, each on its own ranks, trained together.

Every rank runs this file: `mimo-launch run job.yaml`. It looks up its role and trains the module that it has.
"""

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

import mimo_role

BATCH, PATCHES, PIXELS, WIDTH = 64, 4, 8, 32

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

ctx = mimo_role.current()  # this rank's role, groups and bridges; torch.distributed is initialized already
bridge = ctx.bridge("vision")  # carries activations from vision to language, and their gradients back
module = "language" if ctx.role.has_language_module else "vision"

# Both modules divide the batch among their replicas, each by its own number of them (its dp).
replica, replicas = ctx.coords(module)["dp"], ctx.topology.grids[module].axis_size("dp")
samples = mimo_role.lane_samples(BATCH, replicas, replica)
own = slice(samples.start, samples.stop)
print(f"{module}, replica {replica} of {replicas}: samples {samples.start} to {samples.stop - 1} of {BATCH}")

torch.manual_seed(0)  # replicas of a module start with equal weights
if ctx.role.has_language_module:
    layers = [nn.Flatten(), nn.Linear(PATCHES * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PATCHES)]
else:
    layers = [nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
model = nn.Sequential(*layers).to(ctx.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)

for step in range(1, steps + 1):
    ctx.step(step)  # reports progress, so that a hang is detected
    # Every rank makes the same batch: images of random pixels, and the number of the brightest patch of each.
    images = torch.randn(BATCH, PATCHES, PIXELS, generator=torch.Generator().manual_seed(step))
    answers = images.mean(dim=-1).argmax(dim=-1)
    optimizer.zero_grad()
    if ctx.role.has_language_module:
        features = bridge(batch_size=BATCH, sample_shape=(PATCHES, WIDTH), dtype=torch.float32)  # receives
        loss = functional.cross_entropy(model(features), answers[own].to(ctx.device), reduction="sum") / BATCH
        loss.backward()  # sends the gradients of the features back
    else:
        features = model(images[own].to(ctx.device))
        bridge(features, batch_size=BATCH).backward()  # sends, then receives the gradients and goes on with them
    for parameter in model.parameters():  # data parallelism: the sum over the replicas of this module
        dist.all_reduce(parameter.grad, group=ctx.group(module, "dp"))
    optimizer.step()
    if ctx.role.has_language_module and (step == 1 or step % 20 == 0):
        dist.all_reduce(total := loss.detach(), group=ctx.group("language", "dp"))
        if replica == 0:
            print(f"step {step}: loss {total.item():.3f}")
