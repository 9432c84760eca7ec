"""A vision encoder and a language model, each on its own ranks, trained together.

Every rank runs this file: `mimo-launch run job.yaml`. It looks up its role and trains the module that it has. The run
directory keeps checkpoints; a run with the same one continues after the last, also with other sizes.
"""

import argparse
from itertools import chain, islice, repeat

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader, checkpoint

SAMPLES, BATCH, PATCHES, PIXELS, WIDTH = 2048, 64, 4, 8, 32

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps


class Images(Dataset):
    """Images of random pixels, and the number of the brightest patch of each."""

    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        image = torch.randn(PATCHES, PIXELS, generator=torch.Generator().manual_seed(index))
        return image, image.mean(dim=-1).argmax()


ctx = mimo_role.current()  # this rank's role, groups and bridges; torch.distributed is initialized already
bridge = ctx.bridge("vision")  # carries activations from vision to language, and their gradients back
module = "language" if ctx.role.has_language_module else "vision"

# Both modules divide each batch among their replicas, each by its own number of them (its dp).
replica, replicas = ctx.lane(module)
own = mimo_role.lane_samples(BATCH, replicas, replica)
print(f"{module}, replica {replica} of {replicas}: samples {own.start} to {own.stop - 1} of {BATCH}")
loader = RoleDataLoader(ctx, Images(), GlobalBatchSampler(length=SAMPLES, global_batch_size=BATCH))

torch.manual_seed(0)  # replicas of a module start with equal weights
if module == "language":
    layers = [nn.Flatten(), nn.Linear(PATCHES * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, PATCHES)]
else:
    layers = [nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)]
model = nn.Sequential(*layers).to(ctx.device)
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
modules = {module: model}

folder, done = ctx.run_dir / "checkpoints", 0
loaded = checkpoint.load(ctx, folder, modules, optimizer)  # None in a new run directory
if loaded is not None:
    done = loaded.step
    loader.load_state_dict(loaded.extra)
    if ctx.is_logging_rank:
        print(f"continues after step {done} of {steps}; run_dir=runs/NAME starts anew")

epochs = chain.from_iterable(repeat(loader))
for step, (batch,) in enumerate(islice(epochs, max(steps - done, 0)), done + 1):
    ctx.step(step, of=steps)  # reports progress, so that a hang is detected
    images, answers = batch[module]  # the samples of this replica
    optimizer.zero_grad()
    losses = []
    if module == "language":
        features = bridge(batch_size=len(batch), sample_shape=(PATCHES, WIDTH), dtype=torch.float32)  # receives
        losses = [cross_entropy(model(features), answers.to(ctx.device), reduction="sum") / len(batch)]
        losses[0].backward()  # sends the gradients of the features back
    else:
        features = model(images.to(ctx.device))
        bridge(features, batch_size=len(batch)).backward()  # sends, then receives the gradients and continues with them
    ctx.sum_gradients(modules)  # data parallelism: the sum over the replicas of this module
    optimizer.step()
    if step == 1 or step % 20 == 0:
        loss = ctx.mean_loss(losses)  # of the whole batch; called on all ranks
        if ctx.is_logging_rank:
            print(f"step {step}: loss {loss.item():.3f}")
    if step % 50 == 0 or step == steps:
        checkpoint.save(ctx, folder, step, modules, optimizer, loader.state_dict(), keep=2)
