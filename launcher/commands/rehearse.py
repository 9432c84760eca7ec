"""`mimo-launch rehearse`."""

import argparse
import shlex
import signal

from launcher.commands.messages import say, warn
from launcher.commands.planned import planned
from launcher.config.schema import JobConfig
from launcher.errors import UsageError
from launcher.exit_code import ExitCode
from launcher.host.init_process import become_child_of_init
from launcher.outcome import Outcome, Terminated
from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.rehearsal import rehearse
from launcher.rehearse.result import RehearsalResult
from launcher.rehearse.shrink import overrides_of


def run(arguments: argparse.Namespace) -> int:
    """Rehearse each kind of rank, and print what was found; with `--shrink` print overrides."""
    _check(arguments)
    become_child_of_init()
    plan, config_text, config = planned(arguments)
    if arguments.shrink:
        print(shlex.join(overrides_of(plan.topology, arguments.overrides, has_pools=config.pools is not None)))
        return ExitCode.SUCCESS
    warn(plan)
    try:
        found = _rehearse(arguments, plan, config_text, config)
    except Terminated:
        say("ended by SIGTERM")
        return Outcome.signalled(signal.SIGTERM).exit_code
    _print(arguments, found)
    return found.exit_code


def _check(arguments: argparse.Namespace) -> None:
    if arguments.jobs < 1 or arguments.steps < 0 or not arguments.timeout_s >= 0:
        raise UsageError(
            "--jobs is 1 or more, --timeout-s and --steps 0 or more; mimo-launch rehearse --help lists the arguments"
        )
    if arguments.real_tensors and not arguments.memory:
        raise UsageError("--real-tensors is for --memory, which is not given")
    if arguments.shrink and (arguments.traffic or arguments.memory):
        other = "--traffic" if arguments.traffic else "--memory"
        raise UsageError(f"--shrink runs nothing, so there is nothing for {other} to print; leave out one of them")


def _rehearse(arguments: argparse.Namespace, plan: LaunchPlan, config_text: str, config: JobConfig) -> RehearsalResult:
    return rehearse(
        plan,
        config_text,
        jobs=arguments.jobs,
        steps=arguments.steps,
        timeout_s=arguments.timeout_s,
        tensors=("real" if arguments.real_tensors else "fake") if arguments.memory else None,
        gpu_memory_gib={name: pool.resources.gpu_memory_gib for name, pool in (config.pools or {}).items()},
        say=say,
        report=lambda result: say(f"{result.kind.name}: {result.exit.ending}, {result.seconds:.2f} s"),
    )


def _print(arguments: argparse.Namespace, found: RehearsalResult) -> None:
    print(found.table())
    if arguments.traffic:
        print(f"\n{found.traffic.table()}")
    if arguments.memory:
        print(f"\n{found.memory.table()}")
    for line in (*found.failures(), *found.call_failures(), *found.memory.too_large(), found.summary()):
        say(line)
