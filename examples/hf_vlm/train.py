"""Train a vision-language model of transformers, in any layout, to answer questions about pictures.

mimo-launch run non_colocated.yaml
mimo-launch run non_colocated.yaml -- --pretrained FOLDER --bf16 --freeze "model.visual.*"
"""

import argparse
import importlib.util
from itertools import chain, repeat

import torch
from data import HELD_OUT, Questions, processor_of
from small_models import CONFIGS
from transformers import AutoConfig, AutoModelForImageTextToText, get_cosine_schedule_with_warmup

import mimo_role
from mimo_role import GlobalBatchSampler, RoleDataLoader, checkpoint
from mimo_role.hf import RankModel, export_pretrained


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model", choices=CONFIGS, default="qwen3_vl", help="a small model with random weights")
    add("--pretrained", metavar="FOLDER", help="instead, what save_pretrained has written")
    add("--freeze", nargs="*", default=[], metavar="PATTERN", help="names of parameters: 'model.vision_tower.*'")
    add("--fsdp", nargs="*", default=[], metavar="MODULE", help="modules that FSDP2 divides")
    add("--steps", type=int, default=500)
    add("--batch-size", type=int, default=32)
    add("--micro-batches", type=int, default=2)
    add("--lr", type=float, default=3e-3, help="of the language model")
    add("--vision-lr", type=float, default=3e-3)
    add("--max-norm", type=float, default=1.0)
    add("--every", type=int, default=100, help="steps between evaluations, and between checkpoints")
    add("--log-every", type=int, default=10)
    add("--dtype", choices=["float32", "float64", "bfloat16"], default="float32", help="of parameters")
    add("--bf16", action="store_true", help="compute in bfloat16")
    return parser.parse_args()


args = parse()
ctx = mimo_role.current()  # this rank's role, groups and bridges
config = AutoConfig.from_pretrained(args.pretrained) if args.pretrained else CONFIGS[args.model]()
model = RankModel(
    ctx,
    config,
    dtype=getattr(torch, args.dtype),
    fsdp=args.fsdp,
    freeze=args.freeze,
    autocast=torch.bfloat16 if args.bf16 else None,
)

processor = processor_of(config, args.pretrained)
training = Questions(processor, 100 * args.batch_size, held_out=False)
held_out = Questions(processor, HELD_OUT, held_out=True)


def loader_of(dataset, *, micro_batches, shuffle):
    sampler = GlobalBatchSampler(
        length=len(dataset), global_batch_size=args.batch_size, micro_batches=micro_batches, shuffle=shuffle
    )
    return RoleDataLoader(ctx, dataset, sampler, collate_fn=model.collate_fn, needs=model.needs)


loader = loader_of(training, micro_batches=args.micro_batches, shuffle=True)
held_out_loader = loader_of(held_out, micro_batches=1, shuffle=False)

rates = {"language": args.lr, "vision": args.vision_lr}
groups = [{"params": list(part.parameters()), "lr": rates[name]} for name, part in model.modules.items()]
optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
checkpoints, done = ctx.run_dir / "checkpoints", 0
loaded = checkpoint.load(ctx, checkpoints, model.modules, optimizer)  # None in a new run directory
if loaded is not None:
    done = loaded.step
    loader.load_state_dict(loaded.extra)
elif args.pretrained:
    model.load(args.pretrained)
else:
    model.initialize(seed=0)
schedule = get_cosine_schedule_with_warmup(optimizer, args.steps // 20, args.steps, last_epoch=done - 1)
writer = None
if ctx.is_logging_rank and importlib.util.find_spec("tensorboard"):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(ctx.run_dir / "tensorboard")


def report(step, **scalars):
    """Print and record numbers, on one rank."""
    if ctx.is_logging_rank:
        print(f"step {step}: {', '.join(f'{name} {value:.8g}' for name, value in scalars.items())}")
    for name, value in scalars.items() if writer else ():
        writer.add_scalar(name, value, step)


def save(step):
    checkpoint.save(ctx, checkpoints, step, model.modules, optimizer, loader.state_dict(), keep=2)


def answer_questions(folder):
    """Answer held-out questions about pictures with transformers alone, and print how many answers are exact."""
    whole = AutoModelForImageTextToText.from_pretrained(folder).to(ctx.device).eval()
    end = processor.tokenizer.eos_token_id
    questions = [held_out.example(index) for index in range(100)]
    right = {}
    for images, prompt, answer in questions:
        inputs = {name: value.to(ctx.device) for name, value in held_out.inputs(images, prompt).items()}
        found = whole.generate(**inputs, max_new_tokens=20, do_sample=False, eos_token_id=end, pad_token_id=end)
        text = processor.tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right.setdefault(len(images), []).append(text.strip() == answer)
    for number, exact in sorted(right.items()):
        print(f"exact answers to held-out questions with {number} pictures: {sum(exact)} of {len(exact)}")


def evaluate():
    """The mean loss of held-out questions. Collective over the world."""
    model.modules.eval()
    losses = [ctx.mean_loss(model.evaluate(micro_batches)).item() for micro_batches in held_out_loader]
    model.modules.train()
    return sum(losses) / len(losses)


epochs = chain.from_iterable(repeat(loader))
for step in range(done + 1, args.steps + 1):
    ctx.step(step, of=args.steps)  # progress: for hangs, restarts and reports
    losses = model.step(next(epochs))  # forwards and backwards over all modules
    ctx.sum_gradients(model.modules)
    norm = ctx.clip_grad_norm_(model.modules, args.max_norm)  # the norm over all modules
    optimizer.step()
    optimizer.zero_grad()
    schedule.step()
    loss = ctx.mean_loss(losses)  # over the answers' tokens in the whole batch
    if step % args.log_every == 0:
        report(step, loss=loss.item(), norm=norm.item(), lr=optimizer.param_groups[0]["lr"])
    if step % args.every == 0 or step == args.steps:
        report(step, held_out_loss=evaluate())
        save(step)
    elif ctx.seconds_left() is not None:  # before the end of a SLURM job, or after SIGTERM
        save(step)
        raise SystemExit(mimo_role.REQUEUE_EXIT_CODE)

if ctx.is_logging_rank:
    export_pretrained(config, checkpoints, ctx.run_dir / "export")
    answer_questions(ctx.run_dir / "export")
