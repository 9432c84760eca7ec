"""A vision encoder beside Megatron-Core's GPT: it is shown a handwritten digit and writes its name.

The encoder's ranks and the language model's run different code, told apart by their role. Megatron-Core gets its process
groups from the context; the bridge takes the encoder's embeddings to the language model's lanes and their gradients back.
"""

import argparse
import warnings

import mimo_role

warnings.filterwarnings("ignore")  # megatron-core's, about packages that it would like to have

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec  # noqa: E402
from megatron.core.tensor_parallel.random import initialize_rng_tracker, model_parallel_cuda_manual_seed  # noqa: E402
from megatron.core.transformer import TransformerConfig  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402

from mimo_role import lane_samples  # noqa: E402

HIDDEN, PATCHES, WORDS = 64, 16, 11
ASK = 10
"""The one token of the prompt; 0 to 9 are the answers."""


class Encoder(nn.Module):
    """An 8x8 image to one embedding per 2x2 patch: [batch, 8, 8] -> [batch, PATCHES, HIDDEN]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(4, HIDDEN)
        self.position = nn.Parameter(torch.randn(PATCHES, HIDDEN) * 0.02)
        self.layer = nn.TransformerEncoderLayer(HIDDEN, 4, 2 * HIDDEN, dropout=0.0, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = images.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(images), PATCHES, 4)
        return self.layer(self.patch(patches) + self.position)


class Attention(nn.Module):
    """torch's attention in the place of Megatron's, whose buffers are on a GPU: the example also runs without one."""

    def __init__(self, **_: object) -> None:
        super().__init__()

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """[sequence, batch, heads, width] each -> [sequence, batch, heads * width]."""
        found = F.scaled_dot_product_attention(*(each.permute(1, 2, 0, 3) for each in (query, key, value)), is_causal=True)
        return found.permute(2, 0, 1, 3).flatten(2)


class Language(nn.Module):
    """Megatron-Core's GPT over image embeddings and the prompt: [batch, PATCHES, HIDDEN] -> [batch, words]."""

    def __init__(self, ctx: mimo_role.RoleContext) -> None:
        super().__init__()
        groups = ctx.megatron_process_groups("language")
        if ctx.device.type == "cuda":
            model_parallel_cuda_manual_seed(
                1, tp_rank=groups.tp.rank(), ep_rank=groups.ep.rank(), etp_rank=groups.expt_tp.rank()
            )
        else:
            initialize_rng_tracker(inference_rng_tracker=True)  # Megatron's other trackers keep CUDA's random state
        config = TransformerConfig(
            num_layers=2,
            hidden_size=HIDDEN,
            num_attention_heads=4,
            tensor_model_parallel_size=groups.tp.size(),
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_cpu_initialization=True,
        )
        layer = get_gpt_layer_local_spec()
        layer.submodules.self_attention.submodules.core_attention = Attention
        self._tp = groups.tp
        self.model = GPTModel(
            config,
            layer,
            vocab_size=WORDS + 1,  # even, so that two tp ranks can share it
            max_sequence_length=PATCHES + 1,
            pg_collection=groups,
        )

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        batch, length = len(embeddings), PATCHES + 1
        device = embeddings.device
        positions = torch.arange(length, device=device).expand(batch, length)
        prompt = torch.full((batch, 1), ASK, device=device)
        asked = self.model.embedding(prompt, positions[:, -1:])
        inputs = torch.cat([embeddings.transpose(0, 1), asked])
        return self._all_words(self.model(None, positions, None, decoder_input=inputs)[:, -1].contiguous())

    def _all_words(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of all tp ranks' words; each rank computes the same loss, and takes its gradient through its own."""
        parts = [torch.empty_like(logits) for _ in range(self._tp.size())]
        dist.all_gather(parts, logits.detach(), group=self._tp)
        parts[self._tp.rank()] = logits
        return torch.cat(parts, dim=-1)


def train(ctx: mimo_role.RoleContext, steps: int, batch_size: int) -> None:
    torch.manual_seed(0)  # equal on all ranks: Megatron takes each rank's shard of the same random weights
    module = "vision" if ctx.role.has_modality_modules else "language"
    model = (Encoder() if module == "vision" else Language(ctx)).to(ctx.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    bridge = ctx.bridge("vision")
    lanes, lane = ctx.topology.grids[module].axis_size("dp"), ctx.coords(module)["dp"]
    images, answers = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 8, 8) / 16
    answers = torch.tensor(answers)
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        chosen = torch.randint(len(images), (batch_size,), generator=draw)
        mine = chosen[list(lane_samples(batch_size, lanes, lane))]
        optimizer.zero_grad()
        if module == "vision":
            bridge(model(images[mine].to(ctx.device)), batch_size=batch_size).backward()
        else:
            embeddings = bridge(batch_size=batch_size, sample_shape=(PATCHES, HIDDEN), dtype=torch.float32)
            loss = F.cross_entropy(model(embeddings), answers[mine].to(ctx.device), reduction="sum") / batch_size
            loss.backward()
            dist.all_reduce(loss.detach(), group=ctx.group("language", "dp"))
            if step % 10 == 0 or step == steps - 1:
                report(ctx, step, loss)
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=ctx.group(module, "dp"))
        optimizer.step()


def report(ctx: mimo_role.RoleContext, step: int, loss: torch.Tensor) -> None:
    if all(at == 0 for at in ctx.coords("language").values()):
        print(f"step {step:3d}  loss {float(loss.detach()):.4f}", flush=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=100)
    options.add_argument("--batch-size", type=int, default=96, help="samples of all lanes together")
    arguments = options.parse_args()
    train(mimo_role.current(), arguments.steps, arguments.batch_size)


if __name__ == "__main__":
    main()
