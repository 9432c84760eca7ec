"""The job of `mimo-launch run`, from its config to its exit code."""

import argparse
import logging
import sys
from dataclasses import replace
from typing import TextIO

from launcher.agent import lifecycle
from launcher.agent.early_server import EarlyServer
from launcher.commands.messages import say, warn
from launcher.commands.planned import planned
from launcher.console import FOLD_S, Console, LogsToMessages
from launcher.coordination import node_identity
from launcher.errors import ConfigError
from launcher.plan.debugging import with_debuggers
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.plan_file import is_plan, load_plan


def run_locally(arguments: argparse.Namespace, early: EarlyServer) -> int:
    """Make the plan, run this node's ranks to their end, and return the exit code."""
    plan, config_text = _plan_of(arguments)
    place = node_identity.resolve_local_node(plan, arguments.node_rank, arguments.rdzv_endpoint)
    if sys.stderr.isatty():
        from launcher.plan.render import summary

        say(summary(plan))
    if place.node_rank == 0:
        warn(plan)
    plan = replace(plan, verbose=arguments.verbose, preflight=not arguments.no_preflight)
    plan = with_debuggers(plan, arguments.debug, arguments.debug_port, has_terminal=_is_terminal(sys.stdin))
    outcome = lifecycle.run_node(plan, place, config_text, _console(arguments), early)
    if outcome.message is not None:
        say(outcome.message)
    return outcome.exit_code


def _plan_of(arguments: argparse.Namespace) -> tuple[LaunchPlan, str]:
    if not is_plan(arguments.config):
        plan, config_text, _ = planned(arguments)
        return plan, config_text
    if arguments.overrides or arguments.script_args:
        raise ConfigError(f"{arguments.config} is a plan, which overrides cannot change; give them with a config")
    return load_plan(arguments.config)


def _console(arguments: argparse.Namespace) -> Console:
    """The output of ranks and of mimo-launch, the last line of a terminal included."""
    fold_s = FOLD_S if arguments.log_fold == "on" else 0.0
    redraws, has_status = arguments.debug is None, arguments.progress != "off"
    console = Console.of_process(sys.stdout, sys.stderr, say, fold_s, redraws=redraws, has_status=has_status)
    if console.bottom is not None:
        logging.basicConfig(level=logging.root.level, handlers=[LogsToMessages(console.say)], format="%(message)s", force=True)
    return console


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
