"""One agent's run, from the start of its ranks to how the job ended."""

import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from signal import Signals
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult
from torch.distributed.elastic.multiprocessing import SignalException

from launcher.agent.elastic_agent import ElasticAgent
from launcher.agent.torchelastic_private import silence_torchelastic
from launcher.config.schema import Join
from launcher.console import Console
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.membership import AbortReason
from launcher.coordination.node_identity import LocalNode
from launcher.errors import LaunchError
from launcher.failures.rank_exit import RankExit, first_failure
from launcher.failures.report import FailureReport, headline
from launcher.host import fork_server, resources
from launcher.logs.log_specs import RunDirLogsSpecs
from launcher.outcome import REQUEUED, Problem
from launcher.plan.launch_plan import LaunchPlan
from launcher.run_dir.writer import RunDir
from mimo_role import REQUEUE_EXIT_CODE
from mimo_role.host import environ

logger = logging.getLogger(__name__)

_GATHER_S = 5.0
"""For how long, beside the grace time, node 0 waits for what other nodes know of a failure."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How the agent's run ended."""

    attempt: int
    """Which start of the ranks this was: 0, or the number of restarts before it."""
    report: FailureReport | None = None
    """Of the rank that failed first, as far as this node knows; node 0 knows all."""
    problem: Problem | None = None
    """Why the job ends, if no rank has failed."""
    signal: Signals | None = None
    """The signal that mimo-launch was ended by."""
    elsewhere: AbortReason | None = None
    """Why the job ended, if it was not this node that ended it."""
    requeue: bool = False
    """Whether the ranks ended in order to be started again."""
    restarts: Sequence[str] = ()
    """Why the ranks were started again, each time that a rank of this node was the reason."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one agent's run takes."""

    plan: LaunchPlan
    here: LocalNode
    run_dir: RunDir
    folder: Path
    """The one that this node's ranks share with their agent."""
    control: Coordinator | None
    streams: Console


def run(setting: Setting) -> Ending:
    """Start the ranks of this machine's node, and wait until all of the job have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C; the ranks have been told to stop, and have.
    """
    silence_torchelastic()
    # SIGINT stays Python's: torchelastic would pass it on, and a rank inside a collective does not hear it.
    environ.export({"TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGHUP,SIGQUIT"})
    logs = RunDirLogsSpecs(setting.plan, setting.run_dir, setting.streams)
    agent = ElasticAgent(
        setting.plan, setting.here, setting.run_dir, setting.folder, logs, setting.control, setting.streams.say
    )
    oom_kills = resources.oom_kills()
    signal.signal(Signals.SIGUSR1, lambda number, _: agent.warn(Signals(number)))
    try:
        ending = _ending_of(agent, agent.run(), setting, oom_kills)
        return replace(ending, restarts=_restarts(agent, setting.plan))
    except SignalException as ending:
        _ignore_signals()
        return _ending_by(Signals(ending.sigval), agent)
    except OSError as error:
        _ignore_signals()
        problem = Problem(f"{setting.plan.nodes[setting.here.node_rank].name}: the ranks could not be started: {error}", 1)
        if setting.control is not None:
            setting.control.end(problem.message, problem.code)
        return Ending(attempt=agent.attempt, problem=problem)
    except LaunchError:
        assert setting.control is not None
        return Ending(attempt=agent.attempt, elsewhere=setting.control.ending)
    finally:
        _ignore_signals()
        agent.stop_arrivals()
        logs.stop()


def _restarts(agent: ElasticAgent, plan: LaunchPlan) -> list[str]:
    if agent.not_again is not None:
        return [headline(plan.topology, attempt.failure) for attempt in agent.attempts[:-1]]
    return [headline(plan.topology, attempt.failure) for attempt in agent.attempts]


def _ignore_signals() -> None:
    """torchelastic's handlers would raise in the middle of the clean-up, which is bounded."""
    for number in (Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGQUIT, Signals.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _ending_of(agent: ElasticAgent, result: RunResult, setting: Setting, oom_kills: int) -> Ending:
    control = agent.control
    if not result.is_failed():
        return Ending(attempt=agent.attempt, elsewhere=control.ending if control is not None else None)
    if agent.wants_requeue():
        return _ending_in_order_to_start_again(agent)
    if agent.problem is not None:
        return Ending(attempt=agent.attempt, problem=agent.problem)
    if (control is None or control.ending is None) and fork_server.has_died():
        problem = Problem("the fork server, from which the ranks are forked, was killed or stopped; the ranks ended with it", 1)
        if control is not None:
            control.end(f"{problem.message} ({control.member})", problem.code)
        return Ending(attempt=agent.attempt, problem=problem)
    records = agent.records_of_all()
    first = first_failure(records)
    if control is not None and first is not None:
        agent.tell_of(first)
    report = _report(agent, records, setting, resources.oom_kills() - oom_kills)
    told_elsewhere = control is not None and agent.told is None and report is None
    return Ending(
        attempt=agent.attempt, report=report, elsewhere=control.ending if told_elsewhere and control is not None else None
    )


def _report(agent: ElasticAgent, records: list[RankExit], setting: Setting, kills: int) -> FailureReport | None:
    """Of the first failure, by all that is known here; `None` where another node tells of it."""
    control, plan = agent.control, setting.plan
    if control is not None:
        name = f"records/{agent.attempt}"
        control.board.post(name, {"records": [record.as_dict() for record in records], "oom_kills": kills})
        ending = control.ending
        if setting.here.node_rank == 0 and ending is not None and ending.rank is not None and not control.is_lost:
            found = control.board.gather(name, plan.runtime.grace_s + _GATHER_S)
            records, kills = _put_together(found, ending.rank, kills)
            if ending.rank not in (record.rank for record in records):
                return None  # its node tells nothing any more; what it said at first holds
        elif agent.told is None:
            return None
    first = agent.told if control is not None and agent.told is not None else None
    first = first_failure(records) if first is None or first.has_lost_a_peer else first
    if first is None or (control is not None and control.ending is not None and control.ending.rank is None):
        return None
    return FailureReport.of(
        plan.topology,
        records,
        first,
        oom_kills=kills,
        joined_by_launcher=plan.runtime.join is Join.LAUNCHER,
        not_again=agent.not_again,
    )


def _put_together(found: Sequence[dict[str, Any]], rank: int, kills: int) -> tuple[list[RankExit], int]:
    """All nodes' records, and the kills for want of memory on the host of the rank that failed first."""
    records: list[RankExit] = []
    for node in found:
        own = [RankExit.from_dict(value) for value in node["records"]]
        kills = node["oom_kills"] if any(record.rank == rank for record in own) else kills
        records += own
    return records, kills


def _ending_by(number: Signals, agent: ElasticAgent) -> Ending:
    control = agent.control
    if control is not None and (agent.is_done or agent.wants_requeue()):
        # The others may still be saving, and end as they see fit.
        agent.tell_done()
        control.wait_for_ending(agent.patience_s)
        if control.is_over or control.ending is not None:
            requeue = control.ending is not None and control.ending.code == REQUEUE_EXIT_CODE
            return Ending(attempt=agent.attempt, requeue=requeue, elsewhere=None if requeue else control.ending)
    if agent.wants_requeue():
        return _ending_in_order_to_start_again(agent)
    if control is not None:
        control.end(f"ended by {number.name} on {control.member}", 128 + number)
    return Ending(attempt=agent.attempt, signal=number)


def _ending_in_order_to_start_again(agent: ElasticAgent) -> Ending:
    if agent.control is None:
        return Ending(attempt=agent.attempt, requeue=True)
    told = agent.control.end(REQUEUED, REQUEUE_EXIT_CODE)
    # Another node may have told of a failure before.
    requeue = told.code == REQUEUE_EXIT_CODE
    return Ending(attempt=agent.attempt, requeue=requeue, elsewhere=None if requeue else told)
