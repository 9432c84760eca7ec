"""Train a vision-language model on handwritten digits, in whatever layout mimo-launch starts it in.

mimo-launch run examples/digits_vlm/non_colocated.yaml
"""

import sys
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path

from data import MODALITIES, Digits
from options import Options, parse
from parallel import build_modules, make_optimizer
from progress import Progress
from steps import Steps

import mimo_role
from mimo_role import REQUEUE_EXIT_CODE, MimoError, RankEnviron, RoleContext, RoleDataLoader, checkpoint

KEPT_CHECKPOINTS = 3


class Training:
    """This rank's part of the training: modules, optimizer, samples, and the steps over them."""

    def __init__(self, ctx: RoleContext, options: Options) -> None:
        """
        Raises:
            MimoError: options or sizes that do not fit the data, the model or the run directory.
        """
        self._ctx, self._options = ctx, options
        self._run_dir = ctx.run_dir or Path()
        self._checkpoints = self._run_dir / "checkpoints"
        _check_start(options, self._checkpoints)
        present = ctx.topology.modality_module_names
        # In an order of their own: the language model's input must not depend on the config's.
        modalities = sorted(present, key=[*MODALITIES, *present].index)
        digits = Digits(modalities, options.torch_dtype)
        sampler = digits.training_sampler(batch_size=options.batch_size, micro_batches=options.micro_batches, seed=options.seed)
        self._loader = RoleDataLoader(ctx, digits.training, sampler)
        self._held_out = digits.held_out_batch(ctx)
        self._modules = build_modules(ctx, modalities, options.seed, options.torch_dtype)
        self._optimizer = make_optimizer(self._modules, options.lr, options.weight_decay)
        self._steps = Steps(ctx, self._modules, self._optimizer, max_norm=options.clip_grad_norm)
        loaded = checkpoint.load(ctx, self._checkpoints, self._modules, self._optimizer)
        if loaded is not None:
            self._loader.load_state_dict(loaded.extra)
        self._saved = 0 if loaded is None else loaded.step

    def run(self) -> None:
        """Train up to the step asked for. When the job is about to be ended, save instead, and ask to be started again.

        Raises:
            SystemExit: the job is about to be ended.
        """
        ctx, options, first = self._ctx, self._options, self._saved + 1
        progress = Progress(self._run_dir, first_step=first, steps=options.steps) if ctx.is_logging_rank else None
        batches = chain.from_iterable(repeat(self._loader))
        for step in range(first, options.steps + 1):
            ctx.step(step, of=options.steps)
            if ctx.seconds_left() is not None:
                self._save(step - 1)
                raise SystemExit(REQUEUE_EXIT_CODE)
            with ctx.span("data"):
                micro_batches = next(batches)
            for group in self._optimizer.param_groups:
                group.update(lr=options.learning_rate(step), weight_decay=options.weight_decay)
            loss = self._steps.train(micro_batches)
            if progress is not None:
                progress.step(step, loss, options.batch_size)
            if _is_due(step, options.eval_every) or step == options.steps:
                accuracy = self._steps.evaluate(self._held_out)
                if progress is not None:
                    progress.report(step, loss, accuracy)
            if _is_due(step, options.checkpoint_every):
                self._save(step)

    def _save(self, step: int) -> None:
        """Save a checkpoint of a step that has just been trained, unless there is one."""
        if step > self._saved:
            position = self._loader.state_dict()
            checkpoint.save(self._ctx, self._checkpoints, step, self._modules, self._optimizer, position, keep=KEPT_CHECKPOINTS)
            self._saved = step


def _check_start(options: Options, checkpoints: Path) -> None:
    """Whether checkpoints in the run directory fit the options. A job that was started again continues by itself."""
    if RankEnviron.from_environ().restart_count:
        return
    last = checkpoint.latest(checkpoints)
    if options.resume and last is None:
        raise MimoError(f"--resume: no checkpoint in {checkpoints}; save some with --checkpoint-every")
    if options.resume and last is not None and last >= options.steps:
        raise MimoError(f"--resume: step {last} is done, and --steps {options.steps} asks for no more; raise --steps")
    if not options.resume and last is not None:
        raise MimoError(f"{checkpoints} holds another run's checkpoints; give --resume, or another run_dir")


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script; a mistake of the user's ends it with a message and exit code 2."""
    try:
        options = parse(arguments)
        training = Training(mimo_role.current(), options)
    except MimoError as error:
        print(f"train.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    training.run()


if __name__ == "__main__":
    main()
