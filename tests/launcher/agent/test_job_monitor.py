"""What a node's agent decides as its ranks end, with small processes in place of ranks."""

import signal
import subprocess
import sys

import pytest

from launcher.agent.job_monitor import Decision, JobMonitor
from launcher.agent.node_job import NodeJob
from launcher.config.loader import load
from launcher.coordination.single_node import SingleNode
from launcher.outcome import AbortReason
from launcher.plan.planner import make_plan
from launcher.run_dir.writer import RunDir
from tests.launcher import fork_servers

CONFIG = """
name: one
layout: non_colocated
modules: {vision: {}, language: {tp: 2}}
entry: {script: train.py}
runtime: {grace_s: 20}
"""
RANK = "import sys\nsys.exit(int(sys.stdin.readline()))"


class Ranks:
    """Three processes that end with the exit code that they are given."""

    def __init__(self):
        self.processes = [subprocess.Popen([sys.executable, "-c", RANK], stdin=subprocess.PIPE, text=True) for _ in range(3)]

    def pids(self):
        return {rank: process.pid for rank, process in enumerate(self.processes)}

    def exit_codes(self):
        return {rank: process.poll() for rank, process in enumerate(self.processes)}

    def end(self, rank, code):
        self.processes[rank].communicate(f"{code}\n", timeout=20)

    def close(self):
        for process in self.processes:
            process.kill()
            process.communicate()


class Started:
    """A monitor of an attempt that has begun."""

    def __init__(self, folder, overrides):
        (folder / "job.yaml").write_text(CONFIG)
        (folder / "train.py").touch()
        (folder / "node").mkdir()
        plan = make_plan(load(folder / "job.yaml", overrides)[0], folder / "job.yaml", ())
        run_dir = RunDir(folder / "run", "", plan.to_json(), "agent-1", "agent-1")
        self.nodes = SingleNode(plan, "alpha", "agent-1")
        self.server = fork_servers.start("agent-1", folder / "node", grace_s=plan.runtime.grace_s)
        job = NodeJob(plan=plan, nodes=self.nodes, server=self.server, run_dir=run_dir, node_dir=folder / "node", say=str)
        self.monitor = JobMonitor(job)
        self.attempts = []
        self.begin(0)

    def begin(self, attempt):
        self.monitor.prepare_attempt(attempt)
        self.monitor.job.run_dir.attempt_dir(attempt).mkdir()
        self.ranks = Ranks()
        self.attempts.append(self.ranks)
        self.monitor.begin_attempt(attempt, self.ranks.pids(), self.ranks.exit_codes)

    def decide(self):
        return self.monitor.decide(self.ranks.exit_codes())

    def close(self):
        self.monitor.close()
        for ranks in self.attempts:
            ranks.close()
        self.server.close()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(*overrides):
        started.append(Started(tmp_path, list(overrides)))
        return started[-1]

    yield start
    for each in started:
        each.close()


def test_ranks_that_run_are_waited_for(start):
    assert start().decide() is Decision.WAIT


def test_the_job_is_done_once_all_ranks_have_ended_well(start):
    job = start()
    for rank in range(3):
        assert job.decide() is Decision.WAIT
        job.ranks.end(rank, 0)
    assert job.decide() is Decision.DONE
    assert (job.monitor.outcome().kind, job.monitor.outcome().exit_code) == ("done", 0)


def test_a_failure_without_restarts_aborts_the_job_before_the_other_ranks_end(start):
    job = start()
    job.ranks.end(1, 7)
    assert job.decide() is Decision.ABORT
    assert (job.nodes.state.abort_reason.rank, job.nodes.state.abort_reason.code) == (1, 7)
    assert job.ranks.exit_codes() == {0: None, 1: 7, 2: None}
    job.monitor.stop_ranks()
    outcome = job.monitor.outcome()
    assert (outcome.kind, outcome.exit_code, outcome.attempts, outcome.restarts) == ("failed", 7, 1, [])
    assert outcome.headline == "rank 1 (language.tp0) failed first: exit code 7"
    assert [each["code"] for each in outcome.details["ranks"]] == [7, -15, -15]


def test_a_failure_with_a_restart_left_ends_all_ranks_and_restarts_them(start):
    job = start("runtime.max_restarts=1")
    job.ranks.end(1, 7)
    assert job.decide() is Decision.RESTART
    assert job.ranks.exit_codes() == {0: -15, 1: 7, 2: -15}
    assert job.monitor.restart_reason == "rank 1 (language.tp0) failed first: exit code 7"
    job.begin(1)
    assert job.decide() is Decision.WAIT
    job.ranks.end(2, 9)
    assert job.decide() is Decision.ABORT
    job.monitor.stop_ranks()
    outcome = job.monitor.outcome()
    assert (outcome.exit_code, outcome.attempts) == (9, 2)
    assert outcome.restarts == ["rank 1 (language.tp0) failed first: exit code 7"]


def test_a_failure_that_a_restart_does_not_help_against_aborts_the_job(start):
    job = start("runtime.max_restarts=5")
    job.ranks.end(1, 2)
    assert job.decide() is Decision.ABORT
    assert job.monitor.restarts.refusal == "exit code 2 reports wrong arguments"
    assert "exit code 2 reports wrong arguments" in job.monitor.outcome().message


def test_ranks_that_ask_are_requeued_once_all_have_ended(start):
    job = start("runtime.max_restarts=5")
    job.ranks.end(0, 75)
    assert job.decide() is Decision.WAIT
    job.ranks.end(1, 0)
    job.ranks.end(2, 75)
    assert job.decide() is Decision.REQUEUE
    assert (job.monitor.outcome().kind, job.monitor.outcome().exit_code) == ("requeued", 75)


def test_ranks_that_do_not_save_in_time_are_killed_and_the_job_is_requeued(start):
    job = start("runtime.grace_s=0.05")
    job.ranks.end(0, 75)
    job.ranks.end(1, 75)
    assert job.decide() is Decision.WAIT
    while (decision := job.decide()) is Decision.WAIT:
        pass
    assert job.ranks.exit_codes()[2] == -signal.SIGKILL
    assert decision is Decision.REQUEUE


def test_a_reason_of_another_node_aborts_the_job(start):
    job = start()
    job.nodes.abort(AbortReason(node=1, message="no disk on node1", code=1))
    assert job.decide() is Decision.ABORT
    job.monitor.stop_ranks()
    assert job.monitor.outcome().message == "ended: no disk on node1"


@pytest.mark.parametrize(
    ("codes", "kind", "exit_code"),
    [((75, 75, 75), "requeued", 75), ((75, 0, 0), "requeued", 75), ((0, 75, 9), "ended", 143)],
)
def test_after_sigterm_the_ranks_may_have_asked_to_be_requeued(start, codes, kind, exit_code):
    job = start()
    for rank, code in enumerate(codes):
        job.ranks.end(rank, code)
    outcome = job.monitor.outcome_after_signal(signal.SIGTERM)
    assert (outcome.kind, outcome.exit_code) == (kind, exit_code)


def test_a_warning_reaches_the_ranks_and_marks_the_node_directory(start):
    job = start()
    job.monitor.warn(signal.SIGUSR1)
    while None in job.ranks.exit_codes().values():
        pass
    assert set(job.ranks.exit_codes().values()) == {-signal.SIGUSR1}
    assert (job.monitor.job.node_dir / "notice").exists()


def test_ranks_that_cannot_be_started_are_a_failure_of_this_node(start):
    outcome = start().monitor.outcome_without_start(OSError("no memory"))
    assert outcome.message == "node0: the ranks could not be started: no memory"
    assert (outcome.kind, outcome.exit_code) == ("failed", 1)
