"""Answers a question about an image: which of its patches is the brightest, or the darkest?"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

import mimo_role
from mimo_role import ActivationSpec, GlobalBatchSampler, RoleDataLoader, Schedule1F1B, checkpoint

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

    def keep_stage(self, stage, stages):
        """Remove the layers of other pipeline stages; the others keep their names."""
        self.words = self.words if stage == 0 else None
        self.head = self.head if stage == stages - 1 else None
        kept = range(stage * len(self.blocks) // stages, (stage + 1) * len(self.blocks) // stages)
        self.blocks = nn.ModuleDict({layer: block for layer, block in self.blocks.items() if int(layer) in kept})

    def forward(self, hidden, questions=None):
        if self.words is not None:
            hidden = torch.cat([hidden, self.words(questions)], dim=1)
        for block in self.blocks.values():
            hidden = block(hidden)
        return hidden if self.head is None else self.head(hidden[:, -1])


torch.manual_seed(0)
images = torch.randn(SAMPLES, PATCHES, PIXELS) + 2 * torch.randn(SAMPLES, PATCHES, 1)
questions = torch.randint(WORDS, (SAMPLES, 1))
brightness = images.mean(dim=-1) * (1 - 2 * questions)
dataset = TensorDataset(images, questions, brightness.argmax(dim=-1))

encoder = [nn.Flatten(), nn.Linear(PATCHES * PIXELS, 64), nn.GELU(), nn.Linear(64, PATCHES * WIDTH)]
vision = nn.Sequential(*encoder, nn.Unflatten(1, (PATCHES, WIDTH)))
language = LanguageModel()
if "language" in ctx.role.modules:
    language.keep_stage(ctx.coords("language")["pp"], ctx.topology.grids["language"].axis_size("pp"))
whole_model = {"vision": vision, "language": language}
modules = nn.ModuleDict({name: whole_model[name] for name in ctx.role.modules})  # those of this rank
optimizer = torch.optim.AdamW(modules.parameters(), lr=0.005)
sampler = GlobalBatchSampler(length=len(dataset), global_batch_size=BATCH, micro_batches=4, shuffle=False)
loader = RoleDataLoader(ctx, dataset, sampler)


def run(module, micro, inputs):
    """This rank's stage of a module. `inputs` are what has come over bridges."""
    if module == "vision":
        pixels, _, _ = micro["vision"]
        return vision(pixels)
    if ctx.role.is_first_stage("language"):
        _, words, _ = micro["language"]
        return language(inputs["vision"], words)
    return language(inputs["language"])


def spec_of(at, micro):
    """The shape of what leaves a stage, of all replicas together."""
    tokens = PATCHES if at.module == "vision" else PATCHES + 1
    return ActivationSpec.of(len(micro), (tokens, WIDTH), torch.float64)


def loss_of(logits, micro):
    """On the last stage of the language model."""
    _, _, answers = micro["language"]
    return cross_entropy(logits, answers, reduction="sum") / micro.samples_in_step


schedule = Schedule1F1B(ctx, run=run, spec_of=spec_of, loss_of=loss_of, modules=modules)

folder = ctx.run_dir / "checkpoints"
loaded = checkpoint.load(ctx, folder, modules, optimizer)  # None in a new run directory
step = 0
if loaded is not None:
    step = loaded.step
    loader.load_state_dict(loaded.extra)
    if ctx.is_logging_rank:
        print(f"continues after step {step}")

while loader.epoch < EPOCHS:
    for micro_batches in loader:
        step += 1
        ctx.step(step)  # progress: for hangs, restarts and reports
        losses = schedule.step(micro_batches)  # forwards and backwards; the losses on the last stage, elsewhere []
        ctx.sum_gradients(modules)  # over the replicas of each module
        ctx.clip_grad_norm_(modules, 1.0)  # the norm over both modules; called on all ranks
        optimizer.step()
        optimizer.zero_grad()
        mean = ctx.mean_loss(losses)  # of the whole batch; called on all ranks
        if ctx.is_logging_rank:
            print(f"step {step}: loss {mean.item():.10f}")
        is_ending = ctx.seconds_left() is not None  # before the end of a SLURM job, or after SIGTERM
        if step % 5 == 0 or is_ending:
            checkpoint.save(ctx, folder, step, modules, optimizer, loader.state_dict(), keep=2)
        if is_ending:
            raise SystemExit(mimo_role.REQUEUE_EXIT_CODE)
