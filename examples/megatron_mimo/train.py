"""Train a model that sees and hears: Megatron-Core's MimoModel, optimizer and schedule over the groups of mimo-launch.

A second run continues after the last checkpoint of the first, with these sizes or with others.
"""

import argparse
import logging
import warnings
from pathlib import Path

import mimo_role


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--communicator", choices=["mimo", "megatron"], default="mimo", help="mimo: any numbers of lanes")
    add("--steps", type=int, default=200)
    add("--batch-size", type=int, default=32, help="samples of all lanes and micro-batches together")
    add("--micro-batches", type=int, default=4)
    add("--lr", type=float, default=3e-3)
    add("--clip-grad", type=float, default=1.0, help="the largest norm of the gradients of all modules together")
    add("--dropout", type=float, default=0.0)
    add("--freeze", nargs="*", default=[], metavar="MODULE", help="modules that are not trained")
    add("--freeze-encoder", nargs="*", default=[], metavar="MODULE", help="modules of which only the projection is trained")
    add("--prefetch", action="store_true", help="run frozen encoders one step ahead")
    add("--seed", type=int, default=1234)
    add("--log-every", type=int, default=10)
    add("--save-every", type=int, default=100, help="steps between checkpoints")
    add("--resume", metavar="RUN_DIR", type=Path, help="continue from the last checkpoint of another run, in any layout")
    return parser.parse_args()


def check_megatron() -> None:
    try:
        import megatron.core.models.mimo.optimizer  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"this example needs megatron-core 0.19 or newer, and with it Python 3.12 or newer: {error}") from None


def main() -> None:
    options, ctx = parse(), mimo_role.current()
    check_megatron()
    if ctx.device.type == "cpu":
        from mimo_role.megatron import run_on_cpu

        run_on_cpu()
    from trainer import Trainer  # here, since Megatron-Core's checkpoints start processes that import this file

    trainer = Trainer(ctx, options)
    checkpoints, done = ctx.run_dir / "checkpoints", 0
    if options.resume:
        done = trainer.load(options.resume / "checkpoints")
    elif (checkpoints / "latest").exists():
        done = trainer.load(checkpoints)
    for step in range(done + 1, options.steps + 1):
        ctx.step(step, of=options.steps)
        loss, norm = trainer.step(step)
        if ctx.is_logging_rank and (step % options.log_every == 0 or step == options.steps):
            print(f"step {step:4d}  loss {loss:.6f}  norm {norm:.6f}", flush=True)
        if step % options.save_every == 0 or step == options.steps:
            trainer.save(checkpoints, step)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")  # Megatron-Core's, about packages that it would like to have, and of its future
    logging.getLogger("megatron.core.dist_checkpointing").setLevel(logging.ERROR)
    main()
