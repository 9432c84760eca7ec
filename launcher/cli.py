"""The commands, their messages and exit codes: the only place that prints and exits."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from launcher.errors import ConfigError, LaunchError
from launcher.host.interpreter_exit import exit_without_teardown
from mimo_role.errors import MimoError

if TYPE_CHECKING:
    from launcher.config.schema import JobConfig
    from launcher.plan.launch_plan import LaunchPlan

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130
_NO_OPTIONS = ("command", "config", "overrides", "job")
"""What a command's arguments hold beside its options."""


def entry() -> NoReturn:
    """The console script: run the command and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    exit_without_teardown(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    own, script_args = _split_at_dashes(words)
    parser = _parser()
    # argparse alone takes overrides on one side of the options only.
    arguments, more = parser.parse_known_args(own)
    takes_config = hasattr(arguments, "overrides")
    if unknown := [word for word in more if word.startswith("-") or not takes_config]:
        parser.error(_unknown(unknown[0], arguments, takes_config))
    if takes_config:
        arguments.overrides += more
        arguments.script_args = script_args
    elif script_args:
        parser.error(f"{script_args[0]}: arguments of the script belong to run and submit")
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="mimo-launch: %(message)s")
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
    except MimoError as error:
        _say(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as in `mimo-launch plan ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    return code


def _unknown(word: str, arguments: argparse.Namespace, takes_config: bool) -> str:
    """What to say of an option that the command does not have."""
    import difflib

    options = ["--help", "--version", *(f"--{name.replace('_', '-')}" for name in vars(arguments) if name not in _NO_OPTIONS)]
    close = difflib.get_close_matches(word.partition("=")[0], options, n=1)
    hints = [f"did you mean {close[0]}?"] if close else []
    if takes_config:
        hints.append("(arguments of the script follow --)" if close else "arguments of the script follow --")
    return f"unknown option {word}" + (f"; {' '.join(hints)}" if hints else "")


def _split_at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mimo-launch",
        description="Start a training job whose modules (encoders, a language model) each have their own grid of ranks.",
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    plan = _add_command(commands, "plan", _plan, "show which rank runs what, where; start nothing")
    plan.add_argument("--json", action="store_true", help="print one JSON object")
    run = _add_command(commands, "run", _run, "start this machine's ranks and wait for them")
    run.add_argument("--node-rank", metavar="I", help="the number of this node in the plan, or POOL:K within a pool; from 0")
    run.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet: node 0's host, and a free port there")
    run.add_argument("--no-preflight", action="store_true", help="do not compare the ranks' versions and files before")
    run.add_argument(
        "--log-fold",
        choices=["on", "off"],
        default="on",
        help="off: print a line that several ranks write at the same moment once for each",
    )
    submit = _add_command(commands, "submit", _submit, "hand the job to a scheduler")
    submit.add_argument("--to", metavar="SCHEDULER", required=True, help="slurm, kubernetes, or another one of torchx's")
    submit.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    submit.add_argument("--snapshot", action="store_true", help="let the job run a copy of the code as it is now (slurm)")
    submit.add_argument("--image", help="the container image, whose working folder stands for this one (not slurm)")
    submit.add_argument(
        "--option", metavar="NAME=VALUE", action="append", default=[], help="an option of torchx's scheduler (not slurm)"
    )
    status = _add_job_command(commands, "status", _status, "say how a job is, and which rank runs what where")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    logs = _add_job_command(commands, "logs", _logs, "print the ranks' output")
    logs.add_argument("--module", help="only ranks that run this module")
    logs.add_argument("--stage", type=int, metavar="N", help="only ranks on this pipeline stage, counted from 0")
    logs.add_argument("--rank", metavar="N[,N-M...]", help="only these ranks")
    logs.add_argument("--follow", action="store_true", help="go on until the job is over")
    _add_job_command(commands, "cancel", _cancel, "end a job")
    return parser


def _add_job_command(
    commands: _Commands, name: str, function: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    command.add_argument("job", metavar="JOB", help="the id that submit printed, or a run folder")
    command.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    command.set_defaults(command=function)
    return command


def _add_command(
    commands: _Commands, name: str, function: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        usage=f"mimo-launch {name} [options] CONFIG [key.path=value ...] [-- script arguments ...]",
    )
    command.add_argument("config", metavar="CONFIG", type=Path, help="the job's YAML file; for run also a plan.json")
    command.add_argument("overrides", metavar="key.path=value", nargs="*", help="changes to it, such as modules.language.tp=2")
    command.add_argument("--verbose", action="store_true", help="say what is done, and how long it takes")
    command.set_defaults(command=function)
    return command


class _Version(argparse.Action):
    def __init__(self, option_strings: list[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from mimo_role import __version__

        print(f"mimo-launch {__version__}")
        parser.exit(DONE)


def _plan(arguments: argparse.Namespace) -> int:
    from launcher.plan.render import as_json, as_table

    plan, _, _ = _planned(arguments)
    print(as_json(plan) if arguments.json else as_table(plan))
    return DONE


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from launcher.agent import lifecycle
    from launcher.console import FOLD_S, Console
    from launcher.coordination import node_identity
    from launcher.plan.plan_file import is_plan, load_plan

    if is_plan(arguments.config):
        if arguments.overrides or arguments.script_args:
            raise ConfigError(f"{arguments.config} is a plan, in which all is decided; give overrides to a config")
        plan, config_text = load_plan(arguments.config)
    else:
        plan, config_text, _ = _planned(arguments)
    place = node_identity.resolve_local_node(plan, arguments.node_rank, arguments.rdzv_endpoint)
    if place.node_rank == 0:
        _warn(plan)
    plan = replace(plan, verbose=arguments.verbose, preflight=not arguments.no_preflight)
    streams = Console(out=sys.stdout, err=sys.stderr, say=_say, fold_s=FOLD_S if arguments.log_fold == "on" else 0.0)
    outcome = lifecycle.run(plan, place, config_text, streams)
    if outcome.failure is not None:
        _say(outcome.failure)
    return outcome.exit_code


def _planned(arguments: argparse.Namespace) -> "tuple[LaunchPlan, str, JobConfig]":
    from launcher.config.loader import load
    from launcher.config.yaml_reader import source_of
    from launcher.plan.planner import make_plan
    from launcher.schedulers.sbatch_options import check_options

    config, config_text = load(arguments.config, arguments.overrides)
    for name, pool in (config.pools or {}).items():
        try:
            check_options(name, pool.slurm)
        except ConfigError as error:
            key = str(error).partition(":")[0].partition("=")[0]
            raise ConfigError(f"{source_of(arguments.config, key, arguments.overrides)}: {error}") from None
    return make_plan(config, arguments.config, arguments.script_args, arguments.overrides), config_text, config


def _submit(arguments: argparse.Namespace) -> int:
    plan, config_text, config = _planned(arguments)
    from launcher.schedulers.slurm_scheduler import NAME as SLURM
    from launcher.schedulers.submit import Request, dry_run, schedulers, submit

    if arguments.to not in schedulers():
        raise LaunchError(f"--to {arguments.to}: not a scheduler; there are {', '.join(schedulers())}")
    for option, given in (("--image", arguments.image), ("--option", arguments.option)):
        if given and arguments.to == SLURM:
            raise LaunchError(f"{option}: not for slurm, whose options stand in the config under pools.NAME.slurm")
    if arguments.snapshot and arguments.to != SLURM:
        raise LaunchError("--snapshot: only for slurm; elsewhere the code is in the image")
    request = Request(
        plan=plan,
        pools=config.pools or {},
        config_text=config_text,
        to=arguments.to,
        snapshot=arguments.snapshot,
        image=arguments.image,
        options=tuple(arguments.option),
    )
    if arguments.dry_run:
        text = dry_run(request)
        _warn(plan)
        print(text, end="")
        return DONE
    job = submit(request)
    _warn(plan)
    print(job.handle)
    if job.folder is not None:
        _say(f"submitted; {job.folder}\n  mimo-launch status {job.handle}\n  mimo-launch logs {job.handle} --follow")
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    if _is_torchxs(arguments.job):
        from launcher.schedulers.submit import status_of

        print(status_of(arguments.job))
        return DONE
    from launcher import jobs

    job = jobs.find(arguments.job)
    print(jobs.as_json(job) if arguments.json else jobs.as_table(job))
    return DONE


def _logs(arguments: argparse.Namespace) -> int:
    if _is_torchxs(arguments.job):
        raise LaunchError(f"{arguments.job}: its logs are torchx's: torchx log {arguments.job}")
    from launcher import jobs
    from launcher.logs.reader import LogFilter, ranks_from

    wanted = LogFilter(module=arguments.module, stage=arguments.stage, ranks=ranks_from(arguments.rank))
    job = jobs.find(arguments.job)
    if wanted == LogFilter() and not arguments.follow and (own := job.own_output()) is not None:
        print(f"[job] {own}")
    for line in job.lines(wanted, follow=arguments.follow):
        print(line, end="", flush=arguments.follow)
    return DONE


def _cancel(arguments: argparse.Namespace) -> int:
    if _is_torchxs(arguments.job):
        from launcher.schedulers.submit import cancel

        cancel(arguments.job)
        return DONE
    from launcher import jobs
    from launcher.schedulers import slurm_client

    job = jobs.find(arguments.job)
    if job.slurm is None:
        raise LaunchError(f"{arguments.job}: a run of this machine, not a submitted job; end its mimo-launch with Ctrl-C")
    if job.slurm.is_over:
        _say(f"job {job.slurm.job_id} is over already: {job.slurm.state}")
    else:
        slurm_client.cancel(job.slurm.job_id)
        _say(f"job {job.slurm.job_id} is cancelled")
    return DONE


def _warn(plan: "LaunchPlan") -> None:
    for warning in plan.warnings:
        _say(f"warning ({warning.code}): {warning.message}")


def _is_torchxs(job: str) -> bool:
    """Whether a job is named by a torchx handle of another scheduler than SLURM."""
    return "://" in job and not job.startswith("slurm://")


def _say(text: str) -> None:
    print(f"mimo-launch: {text}", file=sys.stderr)
