"""Train a vision-language model on handwritten digits, in whatever layout mimo-launch starts it in.

mimo-launch run examples/digits_vlm/non_colocated.yaml
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoint import Checkpoints
from data import MODALITIES, Digits
from options import Options, parse
from parallel import build_modules, make_optimizer
from progress import Progress, speaks
from steps import Steps

import mimo_role
from mimo_role import REQUEUE_EXIT_CODE, MimoError, RankEnviron, RoleContext


def train(ctx: RoleContext, options: Options, environ: RankEnviron) -> None:
    """Train up to the step asked for. When the job is about to be ended, save instead, and ask to be started again.

    Raises:
        MimoError: options or sizes that do not fit the data, the model or the run folder.
        SystemExit: the job is about to be ended.
    """
    run_folder = Path(environ.run_dir or ".")
    present = ctx.topology.modality_module_names
    # In an order of their own: the language model's input must not depend on the config's.
    modalities = sorted(present, key=[*MODALITIES, *present].index)
    digits = Digits(modalities, options.torch_dtype, ctx.device)
    if options.batch_size > len(digits.training_samples):
        raise MimoError(f"--batch-size {options.batch_size}: there are {len(digits.training_samples)} training samples")
    checkpoints = Checkpoints(ctx, run_folder)
    done = _steps_done(options, checkpoints, environ.restart_count)
    modules = build_modules(ctx, modalities, options.seed, options.torch_dtype)
    optimizer = make_optimizer(modules, options.lr, options.weight_decay)
    if done:
        checkpoints.load(done, modules, optimizer)
    saved = done
    steps = Steps(ctx, modules, optimizer, max_norm=options.clip_grad_norm)
    progress = Progress(run_folder, first_step=done + 1, steps=options.steps) if speaks(ctx) else None
    for step in range(done + 1, options.steps + 1):
        ctx.step(step)
        if ctx.seconds_left() is not None:
            if step - 1 > saved:
                checkpoints.save(step - 1, modules, optimizer)
            raise SystemExit(REQUEUE_EXIT_CODE)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate(step)
        batch = digits.batch(options.seed, step, options.batch_size)
        loss = steps.train(batch, options.micro_batches)
        if progress is not None and loss is not None:
            progress.step(step, loss, len(batch))
        if _is_due(step, options.eval_every) or step == options.steps:
            accuracy = steps.evaluate(digits.held_out())
            if progress is not None and loss is not None and accuracy is not None:
                progress.report(step, loss, accuracy)
        if _is_due(step, options.checkpoint_every):
            checkpoints.save(step, modules, optimizer)
            saved = step


def _steps_done(options: Options, checkpoints: Checkpoints, restarts: int) -> int:
    """The step to go on from, 0 for a new run. One that was started again goes on by itself."""
    last = checkpoints.last_step()
    if restarts:
        return last or 0
    if options.resume and last is None:
        raise MimoError(f"--resume: no checkpoint in {checkpoints.folder}; save some with --checkpoint-every")
    if options.resume and last is not None and last >= options.steps:
        raise MimoError(f"--resume: step {last} is done, and --steps {options.steps} asks for no more; raise --steps")
    if not options.resume and last is not None:
        raise MimoError(f"{checkpoints.folder} holds another run's checkpoints; give --resume, or another run_dir")
    return last or 0


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script; a mistake of the user's ends it with a message and exit code 2."""
    try:
        options = parse(arguments)
        ctx = mimo_role.current()
        train(ctx, options, RankEnviron.from_environ())
    except MimoError as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
