"""The preflight check on two nodes whose agents share a real store, with threads in place of ranks."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from launcher.config.loader import load
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.node_identity import Endpoint, LocalNode
from launcher.coordination.single_node import SingleNode
from launcher.plan.planner import make_plan
from launcher.preflight import check as arriving
from launcher.preflight import facts as telling
from launcher.preflight.check import PreflightCheck
from launcher.preflight.facts import arrive, gather, read_facts, write_verdict
from mimo_role.host import node_dir
from tests.launcher.preflight.facts_of import facts_of

CONFIG = """
name: vlm
layout: non_colocated
modules:
  vision:   {{dp: {0}, pool: encoders}}
  language: {{tp: 2, dp: {0}, pool: llm}}
pools:
  encoders: {{nodes: 1, procs_per_node: {0}}}
  llm:      {{nodes: 1, procs_per_node: {1}}}
entry: {{script: train.py}}
run_dir: run
runtime: {{timeout_s: 30}}
"""
HOSTS = ["hosta", "hostb"]


@pytest.fixture
def plan(tmp_path):
    return plan_of(tmp_path, 2)


def plan_of(folder, dp):
    (folder / "job.yaml").write_text(CONFIG.format(dp, 2 * dp), encoding="utf-8")
    (folder / "train.py").touch()
    return make_plan(load(folder / "job.yaml", [])[0], folder / "job.yaml", ())


class Start:
    """One attempt over two nodes: their agents, which share a real store, and their node directories."""

    def __init__(self, plan, folder):
        self.folders = [folder / "node0", folder / "node1"]
        for each in self.folders:
            each.mkdir()
        self.plan, self.said = plan, []
        endpoint = Endpoint("127.0.0.1", free_port())
        self.controls = [Coordinator(plan, LocalNode(node, endpoint), HOSTS[node]) for node in (0, 1)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda control: control.meet("run", self.said.append), self.controls))
        self.agents = [PreflightCheck(plan, 0, self.folders[node], self.controls[node], self.said.append) for node in (0, 1)]
        for agent in self.agents:
            agent.start()

    @property
    def problem(self):
        return self.agents[0].failure

    def folder_of(self, fact):
        return self.folders[fact.rank not in self.plan.nodes[0].ranks]

    def arrive(self, facts):
        """Let ranks arrive, each in a thread; the verdict of each."""
        with ThreadPoolExecutor(max(1, len(facts))) as pool:
            told = [pool.submit(arrive, fact, self.folder_of(fact), 30.0, wait=True) for fact in facts]
            return [each.result() for each in told]

    def put(self, facts):
        for fact in facts:
            arrive(fact, self.folder_of(fact), 30.0, wait=False)

    def until(self, condition):
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def has_verdict(self):
        return [node_dir.verdict_file(folder).exists() for folder in self.folders]

    def close(self):
        for agent in self.agents:
            agent.stop()
        for control in reversed(self.controls):
            control.leave(0.0)


@pytest.fixture
def starting(tmp_path):
    begun = []

    def start(plan):
        begun.append(Start(plan, tmp_path))
        return begun[-1]

    yield start
    for each in begun:
        each.close()


def test_ranks_that_fit_together_may_go(plan, starting):
    start = starting(plan)
    assert start.arrive(facts_of(6)) == [True] * 6
    assert (start.problem, start.controls[0].state.abort_reason, start.said) == (None, None, [])


def test_a_rank_that_differs_ends_the_job_and_is_named_by_module_and_host(plan, starting):
    start = starting(plan)
    assert start.arrive(facts_of(6, r3={"torch": "2.9"})) == [False] * 6
    problem = start.problem
    assert problem.code == 2
    assert problem.headline.startswith("the ranks do not fit together; ")
    (line,) = [line for line in problem.message.splitlines() if "2.9" in line]
    assert line.split() == ["torch", "2.9", "2.13.0", "3", "language", "host1", "ends", "the", "job"]
    start.until(lambda: start.controls[1].state.abort_reason is not None)
    assert (start.controls[1].state.abort_reason.message, start.controls[1].state.abort_reason.code) == (problem.headline, 2)


def test_the_job_is_aborted_before_ranks_get_the_verdict(plan, starting, monkeypatch):
    """Else a rank that exits on it would be taken for the first failure."""
    start = starting(plan)
    abort, order = start.controls[0].abort, []
    monkeypatch.setattr(start.controls[0], "abort", lambda reason: (order.append(start.has_verdict()), abort(reason)))
    assert start.arrive(facts_of(6, r3={"torch": "2.9"})) == [False] * 6
    assert order == [[False, False]]


def test_a_harmless_mismatch_is_printed_and_the_ranks_go(plan, starting):
    start = starting(plan)
    assert start.arrive(facts_of(6, r5={"cuda": "12.8"})) == [True] * 6
    assert start.said[0].startswith("warning: the ranks differ\n")
    assert start.problem is None


@pytest.mark.parametrize(("backend", "goes"), [("gloo", True), ("nccl", False), ("auto", False)])
def test_ranks_without_a_gpu_each_are_stopped_unless_they_talk_over_gloo(plan, starting, backend, goes):
    start = starting(replace(plan, runtime=replace(plan.runtime, backend=type(plan.runtime.backend)(backend))))
    assert start.arrive(facts_of(6, **{f"r{rank}": {"gpus": 1} for rank in range(6)})) == [goes] * 6


def test_ranks_that_see_no_gpu_at_all_may_go(plan, starting):
    assert starting(plan).arrive(facts_of(6, **{f"r{rank}": {"gpus": 0} for rank in range(6)})) == [True] * 6


def test_ranks_that_are_not_to_be_compared_may_go(plan, starting):
    start = starting(replace(plan, preflight=False))
    assert start.arrive(facts_of(6, r2={"torch": "2.9"})) == [True] * 6
    assert (start.problem, start.said) == (None, [])


def test_missing_ranks_are_printed_after_a_while(plan, starting, monkeypatch):
    monkeypatch.setattr(arriving, "_WAITING_MESSAGE_AFTER_S", 0.05)
    start = starting(plan)
    start.put([fact for fact in facts_of(6) if fact.rank != 4])
    there = "vision: 2 of 2 are here, language: 3 of 4 are here"
    expected = f"waiting for 1 of 6 ranks: r4 language.dp1.tp0 on node1 (hostb) ({there})"
    start.until(lambda: expected in start.said)


def test_messages_about_missing_ranks_become_rarer(plan, starting, monkeypatch):
    monkeypatch.setattr(arriving, "_WAITING_MESSAGE_AFTER_S", 0.05)
    start = starting(replace(plan, runtime=replace(plan.runtime, timeout_s=2.0)))
    start.until(lambda: start.problem is not None)
    # After 0.05, 0.1, 0.2, 0.4, 0.8 and 1.6 seconds.
    assert 2 <= len(start.said) <= 7


def test_a_rank_that_does_not_come_ends_the_job(plan, starting):
    start = starting(replace(plan, runtime=replace(plan.runtime, timeout_s=0.5)))
    start.put(facts_of(5))
    start.until(lambda: start.problem is not None)
    assert start.problem.code == 124
    assert start.problem.message == (
        "r5 language.dp1.tp1 on node1 (hostb) (vision: 2 of 2 are here, language: 3 of 4 are here) "
        "did not come to join within 0.5 s, runtime.timeout_s"
    )
    start.until(lambda: start.controls[1].state.abort_reason is not None)
    assert start.controls[1].state.abort_reason.message == start.problem.message
    assert start.has_verdict() == [False, False]


def test_of_many_missing_ranks_the_first_are_named(tmp_path, starting):
    plan = plan_of(tmp_path, 8)
    start = starting(replace(plan, runtime=replace(plan.runtime, timeout_s=0.1)))
    start.until(lambda: start.problem is not None)
    message = start.problem.message
    assert message.startswith("r0 vision.dp0 on node0 (hosta), r1 vision.dp1 on node0 (hosta), ")
    assert ", r7 vision.dp7 on node0 (hosta) and 16 more (vision: 0 of 8 are here, language: 0 of 16 are here)" in message


def test_stopping_ends_the_waiting(plan, starting):
    start = starting(plan)
    for agent in start.agents:
        agent.stop()
    assert start.problem is None
    assert "mimo-launch preflight" not in [thread.name for thread in threading.enumerate()]


def test_sixty_six_ranks_get_their_verdict(tmp_path, starting):
    start = starting(plan_of(tmp_path, 22))
    assert start.arrive(facts_of(66, ranks_per_host=8)) == [True] * 66


def test_one_node_needs_no_coordinator(plan, tmp_path):
    alone = replace(plan, nodes=(replace(plan.nodes[0], procs=6),))
    agent = PreflightCheck(alone, 0, tmp_path, SingleNode(alone, "here", "run"), str)
    agent.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(lambda fact: arrive(fact, tmp_path, 30.0, wait=True), facts_of(6))) == [True] * 6
    finally:
        agent.stop()


def test_an_earlier_attempt_is_cleared_but_not_the_preemption_notice(tmp_path):
    for fact in facts_of(2):
        arrive(fact, tmp_path, 1.0, wait=False)
    write_verdict(tmp_path, "go")
    node_dir.notice_file(tmp_path).touch()
    assert read_facts(tmp_path, 1) == facts_of(2)[1]
    node_dir.clear(tmp_path)
    assert list(tmp_path.iterdir()) == [node_dir.notice_file(tmp_path)]


def test_a_rank_without_a_verdict_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(telling, "_EXTRA_S", 0.0)
    with pytest.raises(TimeoutError, match="no result of the preflight check from mimo-launch"):
        arrive(facts_of(1)[0], tmp_path, 0.05, wait=True)


def test_this_process_has_facts(plan):
    found = gather(rank=3, local_rank=1, topology_digest="d", entry=plan.entry)
    assert (found.rank, found.local_rank, found.topology, len(found.script)) == (3, 1, "d", 12)
    assert found.torch
    assert gather(rank=3, local_rank=1, topology_digest="d", entry=replace(plan.entry, script=None, module="m")).script == ""


def test_a_commands_facts_do_not_need_torch(plan):
    entry = replace(plan.entry, script=None, command=("bash", "-c", "true"))
    found = gather(rank=3, local_rank=1, topology_digest="d", entry=entry)
    assert (found.torch, found.gpus, found.script) == ("", 0, "")


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
