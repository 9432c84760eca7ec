"""The commands and options of mimo-launch: parsing, help texts, and suggestions for misspelt ones."""

import argparse
import re
from pathlib import Path
from typing import NoReturn, TypeAlias

from launcher.errors import UsageError
from launcher.formatting import closest, did_you_mean
from mimo_role import __version__

_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

_CONFIG_OF_FOLDER = Path("job.yaml")
"""What `init` writes, and what is taken without CONFIG."""


def parse(words: list[str]) -> argparse.Namespace:
    """The command line as values: `command` is the command's name, `script_args` the words after `--`.

    Raises:
        UsageError: an unknown command or option, or a missing or unexpected argument.
        SystemExit: after `--help` or `--version`.
    """
    at = words.index("--") if "--" in words else len(words)
    own, script_args = words[:at], words[at + 1 :]
    parser = _parser()
    name = next((word for word in own if not word.startswith("-")), None)
    if name is not None and name not in parser.commands:
        raise UsageError(_unknown_command(name, parser))
    _check_options(own, parser, name)
    # argparse alone accepts overrides on one side of the options only.
    arguments, more = parser.parse_known_args(own)
    command = parser.commands[arguments.command]
    if unexpected := [word for word in more if word.startswith("-") or not command.takes_config]:
        raise UsageError(f"unexpected argument {unexpected[0]}; {command.prog} --help lists the arguments")
    if command.takes_config:
        _use_config_of_folder(arguments, command)
        arguments.overrides = [*arguments.overrides, *more]
        arguments.script_args = script_args
    elif script_args:
        raise UsageError(
            f"unexpected argument {script_args[0]}; arguments of the script follow plan, run, rehearse and submit only"
        )
    return arguments


def _use_config_of_folder(arguments: argparse.Namespace, command: "_Parser") -> None:
    """Without CONFIG, take `job.yaml` of this folder.

    Raises:
        UsageError: there is none.
    """
    config: Path | None = arguments.config
    if config is not None and "=" in config.name and not config.exists():
        config, arguments.overrides = None, [str(config), *arguments.overrides]
    if config is None and not _CONFIG_OF_FOLDER.exists():
        raise UsageError(
            f"CONFIG is missing, and this folder has no {_CONFIG_OF_FOLDER}; {command.prog} --help lists the arguments"
        )
    arguments.config = config or _CONFIG_OF_FOLDER


class _Parser(argparse.ArgumentParser):
    """A parser that knows the names of its options and commands, takes no abbreviations, and whose errors are `UsageError`s."""

    def __init__(self, **settings: object) -> None:
        self.options: list[str] = []
        self.commands: dict[str, _Parser] = {}
        self.takes_config = False
        super().__init__(**{"allow_abbrev": False, **settings})  # type: ignore[arg-type]

    def add_argument(self, *names: str, **settings: object) -> argparse.Action:
        """As argparse's."""
        self.options += [name for name in names if name.startswith("-")]
        return super().add_argument(*names, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}; {self.prog} --help lists the arguments")


def _unknown_command(word: str, parser: _Parser) -> str:
    if word.endswith((".yaml", ".yml", ".json")):
        return f"{word} is not a command; did you mean 'run {word}'?"
    names = ", ".join(parser.commands)
    return f"unknown command {word}; {did_you_mean(word, parser.commands) or f'there are {names}'}"


def _check_options(own: list[str], parser: _Parser, name: str | None) -> None:
    """Refuse unknown options before argparse does, which reports a missing argument first.

    Raises:
        UsageError: there is one.
    """
    at = own.index(name) if name is not None else len(own)
    for words, known in ((own[:at], parser), (own[at:], parser.commands[name] if name is not None else parser)):
        for word in words:
            option = word.partition("=")[0]
            if re.match(r"-\D", option) and option not in known.options:
                raise UsageError(f"unknown option {word}{_hint_for(option, known, parser)}")


def _hint_for(option: str, known: _Parser, parser: _Parser) -> str:
    hint, word = "", option.lstrip("-")
    of_others = {each.lstrip("-"): name for name, command in parser.commands.items() for each in command.options}
    begun = [each.lstrip("-") for each in known.options if each.startswith(option)]
    if (own := begun[0] if len(begun) == 1 else closest(word, [each.lstrip("-") for each in known.options])) is not None:
        hint = f"did you mean --{own}?"
    elif (other := closest(word, of_others)) is not None:
        hint = f"did you mean --{other} of mimo-launch {of_others[other]}?"
    if known.takes_config:
        hint += " (arguments of the script follow --)" if hint else "arguments of the script follow --"
    return f"; {hint}" if hint else ""


def _parser() -> _Parser:
    parser = _Parser(
        prog="mimo-launch",
        description="Start a training job whose modules (encoders, a language model) each have their own grid of ranks.",
    )
    parser.add_argument("--version", action="version", version=f"mimo-launch {__version__}", help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    _add_init(parser, commands)
    _add_plan(parser, commands)
    _add_run(parser, commands)
    _add_rehearse(parser, commands)
    _add_submit(parser, commands)
    _add_status(parser, commands)
    _add_top(parser, commands)
    _add_logs(parser, commands)
    _add_trace(parser, commands)
    _add_report(parser, commands)
    _add_advise(parser, commands)
    _add_job_command(parser, commands, "cancel", "end a submitted job")
    _add_command(parser, commands, "schema", "print the JSON Schema of a config, for editors")
    return parser


def _add_init(parser: _Parser, commands: _Commands) -> None:
    init = _add_command(parser, commands, "init", "write a first config and script; both run as they are")
    init.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path(), help="where to write (default: here)")
    what = "plain: PyTorch alone (default); hf: transformers; megatron: Megatron-Core's MimoModel"
    init.add_argument("--template", metavar="NAME", default="plain", help=what)


def _add_plan(parser: _Parser, commands: _Commands) -> None:
    plan = _add_config_command(parser, commands, "plan", "show which rank runs what on which node; start nothing")
    form = plan.add_mutually_exclusive_group()
    plan.options += ["--json", "--svg"]
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--svg", action="store_true", help="print the layout as an SVG picture")


def _add_run(parser: _Parser, commands: _Commands) -> None:
    run = _add_config_command(parser, commands, "run", "start the ranks of this machine and wait for them")
    run.add_argument("--node-rank", metavar="I", help="the index of this node in the plan, or POOL:K within a pool; from 0")
    run.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="where the nodes meet: node 0's host, and a free port there")
    run.add_argument("--no-preflight", action="store_true", help="do not compare the ranks' versions and files first")
    run.add_argument("--debug", metavar="N[,N-M...]", help="let pdb of these ranks use this terminal; nothing times out")
    run.add_argument("--debug-port", metavar="PORT", type=int, help="let debugpy of --debug's ranks, or rank 0, listen here")
    run.add_argument(
        "--progress",
        choices=["auto", "off"],
        default="auto",
        help="auto: show the step, speed and loss in the last line of a terminal; off: do not (default: auto)",
    )
    run.add_argument(
        "--log-fold",
        choices=["on", "off"],
        default="on",
        help="on: print a line that several ranks write at the same moment once; off: once for each (default: on)",
    )


def _add_rehearse(parser: _Parser, commands: _Commands) -> None:
    summary = "run one rank of each kind at full world size on this machine, without GPUs and peers"
    rehearse = _add_config_command(parser, commands, "rehearse", summary)
    rehearse.add_argument("--jobs", metavar="N", type=int, default=1, help="processes at the same time (default: 1)")
    rehearse.add_argument(
        "--steps", metavar="N", type=int, default=2, help="training steps of each; 0: until the script ends (default: 2)"
    )
    rehearse.add_argument(
        "--timeout-s", metavar="S", type=float, default=600.0, help="seconds for each process; 0: no limit (default: 600)"
    )
    rehearse.add_argument(
        "--shrink", action="store_true", help="print the overrides of the smallest real job with every kind; run nothing"
    )
    rehearse.add_argument(
        "--traffic", action="store_true", help="print calls and bytes of each stage by group, and what crosses nodes and pools"
    )
    rehearse.add_argument(
        "--memory",
        action="store_true",
        help="print the peak memory of each kind's tensors; here they take none",
    )
    rehearse.add_argument("--real-tensors", action="store_true", help="with --memory: real tensors, to check what it predicts")


def _add_submit(parser: _Parser, commands: _Commands) -> None:
    submit = _add_config_command(parser, commands, "submit", "submit the job to a scheduler")
    submit.add_argument("--to", metavar="SCHEDULER", required=True, help="slurm, kubernetes, or another scheduler of torchx")
    submit.add_argument("--dry-run", action="store_true", help="print what would be submitted; submit nothing")
    submit.add_argument("--snapshot", action="store_true", help="run the job from a copy of the code as it is now (slurm)")
    submit.add_argument("--image", help="the container image, whose working directory replaces the current one (not slurm)")
    submit.add_argument(
        "--option", metavar="NAME=VALUE", action="append", default=[], help="an option of torchx's scheduler (not slurm)"
    )


def _add_status(parser: _Parser, commands: _Commands) -> None:
    status = _add_job_command(parser, commands, "status", "show the state of a job, and which rank runs what on which host")
    status.add_argument("--json", action="store_true", help="print one JSON object")


def _add_top(parser: _Parser, commands: _Commands) -> None:
    what = "the id that submit printed, a run directory, or the HOST:PORT at which the nodes of the run meet"
    top = _add_job_command(parser, commands, "top", "show what a run does now, by module, until it is over", what)
    top.add_argument("--interval", metavar="S", type=float, default=1.0, help="seconds between two looks (default: 1)")
    top.add_argument("--once", action="store_true", help="print the present state and end")
    top.add_argument("--json", action="store_true", help="print each state as one line of JSON")


def _add_logs(parser: _Parser, commands: _Commands) -> None:
    logs = _add_job_command(parser, commands, "logs", "print the output of the ranks")
    logs.add_argument("--module", help="only of ranks that run this module")
    logs.add_argument("--stage", type=int, metavar="N", help="only of ranks on this pipeline stage, counted from 0")
    logs.add_argument("--rank", metavar="N[,N-M...]", help="only of these ranks")
    logs.add_argument("--follow", action="store_true", help="print new lines until the job has ended")


def _add_trace(parser: _Parser, commands: _Commands) -> None:
    trace = _add_job_command(parser, commands, "trace", "write what the ranks did in their last steps, for Perfetto")
    trace.add_argument("--steps", metavar="N[-M]", help="only these steps (default: all that are left)")
    trace.add_argument("--out", metavar="FILE", type=Path, help="the file (default: mimo_trace.json in the run directory)")


def _add_advise(parser: _Parser, commands: _Commands) -> None:
    advise = _add_job_command(parser, commands, "advise", "predict the time per step with other sizes of a job's modules")
    advise.description = f"{advise.description} The job has run, or was rehearsed (RUN_DIR/rehearsal)."
    advise.add_argument("--top", metavar="N", type=int, default=5, help="how many layouts to show (default: 5)")
    advise.add_argument("--steps", metavar="N[-M]", help="learn from these steps (default: all that are left)")
    advise.add_argument("--samples", metavar="N", type=int, help="samples of a micro-batch (default: lanes divide them evenly)")
    for option, metavar, text in (
        ("--pp", "MODULE=N[,N...]", "sizes of a module's pp to compare (default: the run's, and its doublings)"),
        ("--layers", "MODULE=N", "layers that a module's stages divide (default: they divide it evenly)"),
        ("--tp-efficiency", "MODULE=E", "compare other tp: twice the tp takes 1/(2E) of the time (default: the run's tp)"),
    ):
        advise.add_argument(option, metavar=metavar, action="append", default=[], help=text)
    advise.add_argument("--json", action="store_true", help="print one JSON object")


def _add_report(parser: _Parser, commands: _Commands) -> None:
    report = _add_job_command(parser, commands, "report", "show how a run ended and why; or write all of it as a page")
    form = report.add_mutually_exclusive_group()
    report.options += ["--json", "--html"]
    form.add_argument("--json", action="store_true", help="print one JSON object")
    form.add_argument("--html", action="store_true", help="write one HTML file, which needs no other file and no network")
    report.add_argument("--step", metavar="N", type=int, help="with --html: the timeline's step (default: the last whole one)")
    report.add_argument(
        "--out", metavar="FILE", type=Path, help="with --html: the file (default: the run directory's report.html)"
    )


def _add_config_command(parser: _Parser, commands: _Commands, name: str, summary: str) -> _Parser:
    usage = f"mimo-launch {name} [options] [CONFIG] [key.path=value ...] [-- script arguments ...]"
    command = _add_command(parser, commands, name, summary, usage=usage)
    command.takes_config = True
    command.add_argument(
        "config",
        metavar="CONFIG",
        nargs="?",
        type=Path,
        help=f"the job's YAML file; for run also a plan.json (default: {_CONFIG_OF_FOLDER})",
    )
    command.add_argument(
        "overrides",
        metavar="key.path=value",
        nargs="*",
        default=[],
        help="changes to the config, such as modules.vision.tp=2",
    )
    command.add_argument("--verbose", action="store_true", help="print each step of the start and its duration")
    return command


def _add_job_command(
    parser: _Parser, commands: _Commands, name: str, summary: str, what: str = "the id that submit printed, or a run directory"
) -> _Parser:
    command = _add_command(parser, commands, name, summary)
    command.add_argument("job", metavar="JOB", help=what)
    command.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    return command


def _add_command(parser: _Parser, commands: _Commands, name: str, summary: str, usage: str | None = None) -> _Parser:
    command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", usage=usage)
    command.set_defaults(verbose=False)
    parser.commands[name] = command
    return command
