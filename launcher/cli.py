"""The commands, their messages and exit codes: the only place that prints and exits."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeAlias

from launcher.ending import leave
from mimo_role.errors import MimoError

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DONE, USER_ERROR, INTERRUPTED = 0, 2, 130


def entry() -> NoReturn:
    """The console script: run the command and end the process with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    leave(main())


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = sys.argv[1:] if argv is None else argv
    own, script_args = _split_at_dashes(words)
    parser = _parser()
    # argparse alone takes overrides on one side of the options only.
    arguments, more = parser.parse_known_args(own)
    if unknown := [word for word in more if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}; arguments of the script follow --")
    arguments.overrides += more
    arguments.script_args = script_args
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
    run.add_argument("--node-rank", metavar="I", help="which of the plan's nodes this is, or POOL:K for the K-th of a pool")
    run.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet: node 0's host, and a free port there")
    return parser


def _add_command(
    commands: _Commands, name: str, function: Callable[[argparse.Namespace], int], summary: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        usage=f"mimo-launch {name} [options] CONFIG [key.path=value ...] [-- script arguments ...]",
    )
    command.add_argument("config", metavar="CONFIG", type=Path, help="the job's YAML file")
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
    from launcher.config import load
    from launcher.plan import make_plan
    from launcher.render import as_json, as_table

    config, _ = load(arguments.config, arguments.overrides)
    plan = make_plan(config, arguments.config, arguments.script_args, arguments.overrides)
    print(as_json(plan) if arguments.json else as_table(plan))
    return DONE


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from launcher import here, local
    from launcher.config import load
    from launcher.plan import make_plan

    config, config_text = load(arguments.config, arguments.overrides)
    plan = make_plan(config, arguments.config, arguments.script_args, arguments.overrides)
    place = here.find(plan, arguments.node_rank, arguments.rdzv_endpoint)
    for warning in plan.warnings if place.node_rank == 0 else ():
        _say(f"warning ({warning.code}): {warning.message}")
    plan = replace(plan, verbose=arguments.verbose)
    outcome = local.run(plan, place, config_text, out=sys.stdout, err=sys.stderr, say=_say)
    if outcome.failure is not None:
        _say(outcome.failure)
    return outcome.exit_code


def _say(text: str) -> None:
    print(f"mimo-launch: {text}", file=sys.stderr)
