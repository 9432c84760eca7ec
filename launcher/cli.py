"""The commands, their messages and exit codes: the only module that prints and exits."""

import argparse
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from launcher.command_line import parse
from launcher.errors import ConfigError, LaunchError, UsageError
from launcher.exit_code import ExitCode
from launcher.formatting import counted, describe_ranks
from launcher.host.interpreter_exit import exit_without_teardown
from mimo_role.errors import MimoError

if TYPE_CHECKING:
    from typing import TextIO

    from launcher.config.schema import JobConfig
    from launcher.jobs import Job
    from launcher.plan.launch_plan import LaunchPlan
    from launcher.run_dir.layout import RunDirLayout

MIN_INTERVAL_S, MAX_INTERVAL_S = 0.1, 3600


def entry() -> NoReturn:
    """The console script: run the command and end the process with its exit code."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    exit_without_teardown(main())


def _open_closed_streams() -> None:
    """Open /dev/null in place of standard streams that the caller has closed, so that no other file gets their numbers."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def main(argv: list[str] | None = None) -> int:
    """Run one command and return the exit code.

    Raises:
        SystemExit: after `--help` or `--version`.
    """
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING, format="mimo-launch: %(message)s")
        code = _COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except MimoError as error:
        _say(str(error))
        return ExitCode.USER_ERROR
    except KeyboardInterrupt:
        _say("interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has exited, as in `mimo-launch plan ... | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.SUCCESS
    return code


def _init(arguments: argparse.Namespace) -> int:
    import shlex
    from pathlib import Path

    from launcher.init_project import write_project

    names = write_project(arguments.folder, arguments.template)
    print(f"wrote {', '.join(names[:-1])} and {names[-1]}. Next:")
    if arguments.folder.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(str(arguments.folder))}")
    print("  mimo-launch plan job.yaml    # which rank runs what")
    print("  mimo-launch run job.yaml     # train")
    return ExitCode.SUCCESS


def _schema(_: argparse.Namespace) -> int:
    import json  # late, for the sake of --help

    from launcher.config.json_schema import job_schema

    print(json.dumps(job_schema(), indent=2))
    return ExitCode.SUCCESS


def _plan(arguments: argparse.Namespace) -> int:
    from launcher.plan.render import as_json, as_table

    plan, _, _ = _planned(arguments)
    if arguments.svg:
        from launcher.run_report.layout_svg import layout_svg

        print(layout_svg(plan), end="")
    else:
        print(as_json(plan) if arguments.json else as_table(plan))
    return ExitCode.SUCCESS


def _run(arguments: argparse.Namespace) -> int:
    from dataclasses import replace

    from launcher.agent import lifecycle
    from launcher.console import FOLD_S, Console, LogsToMessages
    from launcher.coordination import node_identity
    from launcher.host.init_process import become_child_of_init
    from launcher.plan.debugging import with_debuggers
    from launcher.plan.plan_file import is_plan, load_plan
    from launcher.plan.render import summary

    become_child_of_init()

    if is_plan(arguments.config):
        if arguments.overrides or arguments.script_args:
            raise ConfigError(f"{arguments.config} is a plan, which overrides cannot change; give them with a config")
        plan, config_text = load_plan(arguments.config)
    else:
        plan, config_text, _ = _planned(arguments)
    place = node_identity.resolve_local_node(plan, arguments.node_rank, arguments.rdzv_endpoint)
    if sys.stderr.isatty():
        _say(summary(plan))
    if place.node_rank == 0:
        _warn(plan)
    plan = replace(plan, verbose=arguments.verbose, preflight=not arguments.no_preflight)
    plan = with_debuggers(plan, arguments.debug, arguments.debug_port, has_terminal=_is_terminal(sys.stdin))
    fold_s = FOLD_S if arguments.log_fold == "on" else 0.0
    redraws, has_status = arguments.debug is None, arguments.progress != "off"
    console = Console.of_process(sys.stdout, sys.stderr, _say, fold_s, redraws=redraws, has_status=has_status)
    if console.bottom is not None:
        logging.basicConfig(level=logging.root.level, handlers=[LogsToMessages(console.say)], format="%(message)s", force=True)
    outcome = lifecycle.run_node(plan, place, config_text, console)
    if outcome.message is not None:
        _say(outcome.message)
    return outcome.exit_code


def _rehearse(arguments: argparse.Namespace) -> int:
    from launcher.errors import UsageError
    from launcher.host.init_process import become_child_of_init
    from launcher.outcome import Outcome, Terminated
    from launcher.rehearse.rehearsal import rehearse

    if arguments.jobs < 1 or arguments.steps < 0 or not arguments.timeout_s >= 0:
        raise UsageError(
            "--jobs is 1 or more, --timeout-s and --steps 0 or more; mimo-launch rehearse --help lists the arguments"
        )
    if arguments.real_tensors and not arguments.memory:
        raise UsageError("--real-tensors is for --memory, which is not given")
    become_child_of_init()
    plan, config_text, config = _planned(arguments)
    if arguments.shrink:
        from launcher.rehearse.shrink import overrides_of

        print(" ".join(overrides_of(plan.topology, has_pools=config.pools is not None)))
        return ExitCode.SUCCESS
    _warn(plan)
    try:
        found = rehearse(
            plan,
            config_text,
            jobs=arguments.jobs,
            steps=arguments.steps,
            timeout_s=arguments.timeout_s,
            tensors=("real" if arguments.real_tensors else "fake") if arguments.memory else None,
            gpu_memory_gib={name: pool.resources.gpu_memory_gib for name, pool in (config.pools or {}).items()},
            say=_say,
            report=lambda result: _say(f"{result.kind.name}: {result.exit.ending}, {result.seconds:.2f} s"),
        )
    except Terminated:
        _say("ended by SIGTERM")
        return Outcome.signalled(signal.SIGTERM).exit_code
    print(found.table())
    if arguments.traffic:
        print(f"\n{found.traffic_table()}")
    if arguments.memory:
        print(f"\n{found.memory.table()}")
    for failure in found.failures():
        _say(failure)
    for difference in found.call_failures():
        _say(difference)
    for line in found.memory.too_large():
        _say(line)
    _say(found.summary())
    return found.exit_code


def _is_terminal(stream: "TextIO | None") -> bool:
    return stream is not None and not stream.closed and stream.isatty()


def _planned(arguments: argparse.Namespace) -> "tuple[LaunchPlan, str, JobConfig]":
    from dataclasses import replace

    from launcher.config.loader import load
    from launcher.config.yaml_reader import source_of
    from launcher.plan.planner import make_plan
    from launcher.schedulers.sbatch_options import check_options, review

    config, config_text = load(arguments.config, arguments.overrides)
    options = {}
    for name, pool in (config.pools or {}).items():
        try:
            options[name] = check_options(name, pool.slurm)
        except ConfigError as error:
            key = str(error).partition(":")[0].partition("=")[0]
            raise ConfigError(f"{source_of(arguments.config, key, arguments.overrides)}: {error}") from None
    plan = make_plan(config, arguments.config, arguments.script_args, arguments.overrides)
    used = dict.fromkeys(node.pool for node in plan.nodes if node.pool in options)
    found = review({name: options[name] for name in used})
    return replace(plan, warnings=(*plan.warnings, *found)), config_text, config


def _submit(arguments: argparse.Namespace) -> int:
    plan, config_text, config = _planned(arguments)
    from launcher.schedulers.slurm_scheduler import NAME as SLURM
    from launcher.schedulers.submit import Request, dry_run, schedulers, submit

    if arguments.to not in schedulers():
        raise LaunchError(f"--to {arguments.to}: not a scheduler; there are {', '.join(schedulers())}")
    for option, given in (("--image", arguments.image), ("--option", arguments.option)):
        if given and arguments.to == SLURM:
            raise LaunchError(f"{option}: not for slurm; its options are in the config under pools.NAME.slurm")
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
    _warn(plan)
    if arguments.dry_run:
        print(dry_run(request), end="")
        return ExitCode.SUCCESS
    job = submit(request)
    print(job.handle)
    if job.folder is not None:
        _say(f"submitted; {job.folder}\n  mimo-launch status {job.handle}\n  mimo-launch logs {job.handle} --follow")
    return ExitCode.SUCCESS


def _status(arguments: argparse.Namespace) -> int:
    if _is_torchx_handle(arguments.job):
        from launcher.schedulers.submit import status_of

        print(status_of(arguments.job))
        return ExitCode.SUCCESS
    from launcher import jobs

    job = jobs.find(arguments.job)
    print(jobs.as_json(job) if arguments.json else jobs.as_table(job))
    return ExitCode.SUCCESS


def _top(arguments: argparse.Namespace) -> int:
    if not MIN_INTERVAL_S <= arguments.interval <= MAX_INTERVAL_S:
        raise UsageError(f"--interval {arguments.interval:g}: give between {MIN_INTERVAL_S} and {MAX_INTERVAL_S} seconds")
    from launcher.top import command

    source = command.source_of(arguments.job)
    if arguments.once:
        print(command.once(source, sys.stdout, as_json=arguments.json), end="")
    elif arguments.json or not command.can_redraw(sys.stdout):
        for line in command.lines(source, arguments.interval, as_json=arguments.json):
            print(line, flush=True)
    else:
        last = command.watch(source, sys.stdout, sys.stdin, arguments.interval)
        print(last, end="")
    return ExitCode.SUCCESS


def _logs(arguments: argparse.Namespace) -> int:
    if _is_torchx_handle(arguments.job):
        raise LaunchError(f"{arguments.job}: torchx has its logs: torchx log {arguments.job}")
    from launcher import jobs
    from launcher.logs.reader import LogFilter, ranks_from

    wanted = LogFilter(module=arguments.module, stage=arguments.stage, ranks=ranks_from(arguments.rank))
    job = jobs.find(arguments.job)
    if wanted == LogFilter() and not arguments.follow and (own := job.own_output()) is not None:
        print(f"[job] {own}")
    for line in job.lines(wanted, follow=arguments.follow):
        print(line, end="", flush=arguments.follow)
    return ExitCode.SUCCESS


def _run_of(text: str) -> "tuple[Job, RunDirLayout, LaunchPlan]":
    """The job, run directory and plan that a command line names by a directory or an id."""
    from launcher import jobs

    if not _is_torchx_handle(text):
        job = jobs.find(text)
        files, plan = job.files(), job.plan()
        if files is not None and plan is not None:
            return job, files, plan
    raise LaunchError(f"{text}: no run directory of mimo-launch found for it; give the directory instead")


def _trace(arguments: argparse.Namespace) -> int:
    from launcher.trace.writer import steps_from, write_trace

    steps = steps_from(arguments.steps)
    _, files, plan = _run_of(arguments.job)
    written = write_trace(files, plan, steps=steps, out=arguments.out)
    if written.without:
        _say(f"no recording of {describe_ranks(plan.topology, written.without)}")
    print(f"wrote {written.path}: {counted(written.spans, 'span')} of {counted(written.ranks, 'rank')}")
    print("open it in https://ui.perfetto.dev or chrome://tracing")
    return ExitCode.SUCCESS


def _advise(arguments: argparse.Namespace) -> int:
    from launcher.advise.options import request_from
    from launcher.advise.render import as_json, as_text
    from launcher.advise.run_advice import advise_run
    from launcher.trace.writer import steps_from

    request = request_from(
        top=arguments.top,
        samples=arguments.samples,
        pp=arguments.pp,
        layers=arguments.layers,
        tp_efficiency=arguments.tp_efficiency,
    )
    steps = steps_from(arguments.steps)
    _, files, plan = _run_of(arguments.job)
    advice = advise_run(files, plan, request, steps)
    print(as_json(advice) if arguments.json else as_text(advice))
    return ExitCode.SUCCESS


def _report(arguments: argparse.Namespace) -> int:
    for option, given in (("--step", arguments.step), ("--out", arguments.out)):
        if given is not None and not arguments.html:
            raise LaunchError(f"{option}: only with --html")
    from launcher.run_report import text
    from launcher.run_report.page import write_page
    from launcher.run_report.run_record import read_run, with_timelines

    job, files, plan = _run_of(arguments.job)
    record = read_run(files, plan, job.hosts(plan))
    if arguments.html:
        page = write_page(with_timelines(record, files, arguments.step), arguments.out or files.page_file)
        print(f"wrote {page}")
    else:
        print(text.as_json(record) if arguments.json else text.as_text(record))
    return ExitCode.SUCCESS


def _cancel(arguments: argparse.Namespace) -> int:
    if _is_torchx_handle(arguments.job):
        from launcher.schedulers.submit import cancel

        cancel(arguments.job)
        return ExitCode.SUCCESS
    from launcher import jobs
    from launcher.schedulers import slurm_client

    job = jobs.find(arguments.job)
    if job.slurm is None:
        raise LaunchError(f"{arguments.job}: a run on this machine, not a submitted job; end it with Ctrl-C")
    if job.slurm.is_over:
        _say(f"job {job.slurm.job_id} has ended already: {job.slurm.state}")
    else:
        slurm_client.cancel(job.slurm.job_id)
        _say(f"job {job.slurm.job_id} is cancelled")
    return ExitCode.SUCCESS


def _warn(plan: "LaunchPlan") -> None:
    for warning in plan.warnings:
        _say(f"warning ({warning.code}): {warning.message}")


def _is_torchx_handle(job: str) -> bool:
    """Whether this is a torchx handle of another scheduler than SLURM."""
    return "://" in job and not job.startswith("slurm://")


def _say(text: str) -> None:
    print(f"mimo-launch: {text}", file=sys.stderr)


_COMMANDS = {
    "init": _init,
    "plan": _plan,
    "run": _run,
    "rehearse": _rehearse,
    "submit": _submit,
    "status": _status,
    "top": _top,
    "logs": _logs,
    "trace": _trace,
    "report": _report,
    "advise": _advise,
    "cancel": _cancel,
    "schema": _schema,
}
