"""`mimo-launch submit`."""

import argparse
from collections.abc import Collection

from launcher.commands.messages import say, warn
from launcher.commands.planned import planned
from launcher.errors import LaunchError
from launcher.exit_code import ExitCode


def run(arguments: argparse.Namespace) -> int:
    """Submit a job to a scheduler, and print its handle; with `--dry-run` print what would be submitted."""
    plan, config_text, config = planned(arguments)
    # Late, so that a mistake in the config is reported without torchx too.
    from launcher.schedulers.slurm_scheduler import NAME as SLURM
    from launcher.schedulers.submit import Request, dry_run, schedulers, submit

    _check(arguments, schedulers(), SLURM)
    request = Request(
        plan=plan,
        pools=config.pools or {},
        config_text=config_text,
        to=arguments.to,
        snapshot=arguments.snapshot,
        image=arguments.image,
        options=tuple(arguments.option),
    )
    warn(plan)
    if arguments.dry_run:
        print(dry_run(request), end="")
        return ExitCode.SUCCESS
    job = submit(request)
    print(job.handle)
    if job.folder is not None:
        say(f"submitted; {job.folder}\n  mimo-launch status {job.handle}\n  mimo-launch logs {job.handle} --follow")
    return ExitCode.SUCCESS


def _check(arguments: argparse.Namespace, known: Collection[str], slurm: str) -> None:
    if arguments.to not in known:
        raise LaunchError(f"--to {arguments.to}: not a scheduler; there are {', '.join(known)}")
    for option, given in (("--image", arguments.image), ("--option", arguments.option)):
        if given and arguments.to == slurm:
            raise LaunchError(f"{option}: not for slurm; its options are in the config under pools.NAME.slurm")
    if arguments.snapshot and arguments.to != slurm:
        raise LaunchError("--snapshot: only for slurm; elsewhere the code is in the image")
