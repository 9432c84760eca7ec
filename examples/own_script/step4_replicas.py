"""Answers a question about an image: which of its patches is the brightest, or the darkest?"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader

SAMPLES, BATCH, EPOCHS, PATCHES, PIXELS, WIDTH, WORDS = 480, 64, 2, 4, 8, 32, 2
torch.set_default_dtype(torch.float64)  # so that losses can be compared

ctx = mimo_role.current()  # this rank's role, groups and bridges


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleDict(
            {str(layer): nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True) for layer in range(2)}
        )
        self.head = nn.Linear(WIDTH, PATCHES)

    def forward(self, features, questions):
        hidden = torch.cat([features, self.words(questions)], dim=1)
        for block in self.blocks.values():
            hidden = block(hidden)
        return self.head(hidden[:, -1])


torch.manual_seed(0)
images = torch.randn(SAMPLES, PATCHES, PIXELS) + 2 * torch.randn(SAMPLES, PATCHES, 1)
questions = torch.randint(WORDS, (SAMPLES, 1))
brightness = images.mean(dim=-1) * (1 - 2 * questions)
dataset = TensorDataset(images, questions, brightness.argmax(dim=-1))

encoder = [nn.Flatten(), nn.Linear(PATCHES * PIXELS, 64), nn.GELU(), nn.Linear(64, PATCHES * WIDTH)]
vision = nn.Sequential(*encoder, nn.Unflatten(1, (PATCHES, WIDTH)))
language = LanguageModel()
whole_model = {"vision": vision, "language": language}
modules = nn.ModuleDict({name: whole_model[name] for name in ctx.role.modules})  # those of this rank
optimizer = torch.optim.AdamW(modules.parameters(), lr=0.005)
bridge = ctx.bridge("vision")  # to the language model
sampler = GlobalBatchSampler(length=len(dataset), global_batch_size=BATCH, shuffle=False)
loader = RoleDataLoader(ctx, dataset, sampler)

step = 0
for _ in range(EPOCHS):
    for (micro,) in loader:
        step += 1
        ctx.step(step)  # progress: for hangs, restarts and reports
        if "vision" in modules:
            pixels, _, _ = micro["vision"]  # this replica's samples
            bridge(vision(pixels), batch_size=len(micro)).backward()  # sends, and waits for the gradients
            losses = []
        else:
            _, words, answers = micro["language"]
            features = bridge(batch_size=len(micro), sample_shape=(PATCHES, WIDTH), dtype=torch.float64)
            loss = cross_entropy(language(features, words), answers, reduction="sum") / micro.samples_in_step
            loss.backward()  # sends the gradients of the features
            losses = [loss]
        ctx.sum_gradients(modules)  # over the replicas of each module
        ctx.clip_grad_norm_(modules, 1.0)  # the norm over both modules; called on all ranks
        optimizer.step()
        optimizer.zero_grad()
        mean = ctx.mean_loss(losses)  # of the whole batch; called on all ranks
        if ctx.is_logging_rank:
            print(f"step {step}: loss {mean.item():.10f}")
