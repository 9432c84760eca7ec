"""Start-up of a training with models of transformers, with `runtime.preload`, against torchrun, alternating, on this machine.

The script is the start of `examples/hf_vlm/train.py`: its imports, its small Qwen3-VL, its data and its optimizer. It ends
after the first step. Half of the ranks run the encoder, half the language model. Cases:

- `N ranks, whole process`: seconds from starting the command to its end;
- `N ranks, first step`: seconds from starting the command until the last rank has taken its first step.
"""

from dataclasses import replace
from pathlib import Path

import startup
from report import parser, show

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "hf_vlm"
MODULES = ["transformers.models.qwen3_vl.modeling_qwen3_vl", "accelerate", "sklearn.datasets", "mimo_role.hf"]
"""What the script imports, and what transformers imports for it later."""

SCRIPT = f"""
import os, sys, time
sys.path.insert(0, {str(EXAMPLE)!r})
import torch
from transformers import AutoModelForImageTextToText, get_cosine_schedule_with_warmup
from data import Questions, processor_of
from small_models import CONFIGS
import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader, Topology
from mimo_role.hf import RankModel

torch.set_num_threads(1)
folder, ranks = sys.argv[1], int(os.environ["WORLD_SIZE"])
half = {{"dp": ranks // 2}}
ctx = mimo_role.init(Topology.from_modules({{"vision": half, "language": half}}), backend="gloo")
config = CONFIGS["qwen3_vl"]()
model = RankModel(ctx, config)
model.initialize(seed=0)
dataset = Questions(processor_of(config, None), 256, held_out=False)
sampler = GlobalBatchSampler(length=256, global_batch_size=ranks, micro_batches=1)
loader = RoleDataLoader(ctx, dataset, sampler, collate_fn=model.collate_fn, needs=model.needs)
optimizer = torch.optim.AdamW(model.modules.parameters())
loss = ctx.mean_loss(model.step(next(iter(loader))))
ctx.sum_gradients(model.modules)
ctx.clip_grad_norm_(model.modules, 1.0)
optimizer.step()
assert torch.isfinite(loss)
with open(os.path.join(folder, f"done{{ctx.rank}}"), "w") as file:
    file.write(repr(time.time()))
mimo_role.shutdown()
"""

CONFIG = """
name: hf
layout: non_colocated
modules: {{vision: {{dp: {half}}}, language: {{dp: {half}}}}}
entry: {{script: script.py}}
runtime: {{backend: gloo, join: script, preload: [{modules}]}}
run_dir: {folder}/run
"""


def ours(folder: Path, ranks: int) -> list[str]:
    """The command of mimo-launch, with modules to preload."""
    command = startup.ours(folder, ranks)
    config = CONFIG.format(half=ranks // 2, modules=", ".join(MODULES), folder=folder)
    (folder / "job.yaml").write_text(config, encoding="utf-8")
    return command


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[32], help="worlds to start (default: 32)")
    options.add_argument("--runs", type=int, default=3, help="alternating runs of each case (default: 3)")
    arguments = options.parse_args()
    rows = []
    for ranks in arguments.ranks:
        whole, first = startup.startup_rows(f"{ranks} ranks", ranks, arguments.runs, command=ours, script=SCRIPT)
        rows += [whole, replace(first, case=f"{ranks} ranks, first step")]
    show("hf", rows, arguments.json)


if __name__ == "__main__":
    main()
