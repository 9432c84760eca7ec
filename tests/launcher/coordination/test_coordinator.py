"""Three agents over a real store on this machine, with threads in place of nodes."""

import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from launcher.config.loader import load
from launcher.coordination import membership
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.event_log import Event, JobState
from launcher.coordination.liveness import LivenessTracker, ProbeTrigger, Progress
from launcher.coordination.node_identity import Endpoint, LocalNode
from launcher.errors import LaunchError
from launcher.outcome import AbortReason, Outcome
from launcher.plan.planner import make_plan

CONFIG = """
name: three
layout: non_colocated
modules: {vision: {}, language: {tp: 2}}
pools: {all: {nodes: 3, procs_per_node: 1}}
entry: {script: train.py}
runtime: {timeout_s: 20}
"""
HOSTS = ["alpha", "beta", "gamma"]


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").touch()
    return make_plan(load(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ())


@pytest.fixture
def endpoint():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", found.getsockname()[1])


@pytest.fixture
def connect(plan, endpoint, monkeypatch):
    """Connect one node's agent."""
    monkeypatch.setattr(membership, "FAREWELL_S", 0.5)
    connected = []

    def start(node, plan=plan, slurm_job=None):
        connected.append(Coordinator(plan, LocalNode(node, endpoint, slurm_job), HOSTS[node]))
        return connected[-1]

    yield start
    for each in reversed(connected):
        each.leave(0.0)


@pytest.fixture
def three(connect):
    """Three agents that have met."""
    found = [connect(node) for node in range(3)]
    assert meet(found) == [None] * 3
    return found


def meet(coordinators):
    """Have all meet; what each raises."""

    def one(coordinator):
        try:
            coordinator.meet(f"run-of-{coordinator.node_rank}", str)
        except LaunchError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(len(coordinators)) as threads:
        return list(threads.map(one, coordinators))


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_all_know_the_members_and_the_run_id_of_node_0(three):
    for each in three:
        assert each.state.run_id == "run-of-0"
        assert [str(member) for member in each.state.members] == ["node0 (alpha)", "node1 (beta)", "node2 (gamma)"]


def test_another_plan_is_refused_on_all(connect, plan):
    other = replace(plan, name="other")
    messages = meet([connect(0), connect(1, plan=other), connect(2)])
    assert all(message.startswith("node1 (beta) holds another plan (") for message in messages)


def test_a_second_agent_of_a_node_does_not_disturb_the_others(three, connect):
    (message,) = meet([connect(1)])
    assert message.startswith("two nodes have node rank 1: process ")
    assert three[0].state.abort_reason is None


def test_the_first_abort_holds_on_all(three):
    first = AbortReason(node=1, message="first", code=7, rank=1)
    assert three[1].abort(first) == first
    assert three[2].abort(AbortReason(node=2, message="second", code=1)) == first
    wait_until(lambda: all(each.state.abort_reason == first for each in three))


def test_the_job_is_done_once_all_are(three):
    for each in three[:2]:
        each.report_done(0, requeue=False)
    assert not three[0].state.wait_until(lambda: three[0].state.is_over, 0.3)
    three[2].report_done(0, requeue=False)
    wait_until(lambda: all(each.state.all_done for each in three))


def test_one_node_that_asks_requeues_all_once_all_are_done(three):
    three[1].report_done(0, requeue=True)
    three[0].report_done(0, requeue=False)
    assert not three[0].state.wait_until(lambda: three[0].state.is_over, 0.3)
    three[2].report_done(0, requeue=False)
    wait_until(lambda: all(each.state.is_over for each in three))
    assert all(each.state.abort_reason.is_requeue and not each.state.all_done for each in three)


def test_an_attempt_that_one_node_starts_is_known_to_all(three):
    three[2].start_attempt(1)
    wait_until(lambda: [each.state.attempt for each in three] == [1, 1, 1])


def test_ranks_join_over_a_store_of_node_0(three):
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda each: each.open_rank_store(0)[1:], three))
    assert found == [found[0]] * 3


def test_a_node_that_waits_for_the_store_of_ranks_hears_of_an_abort(three):
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(three[1].open_rank_store, 0)
        three[2].abort(AbortReason(node=2, message="no disk", code=1))
        with pytest.raises(LaunchError, match="no disk"):
            waiting.result(timeout=20)


def test_exits_are_counted_over_all_nodes(three):
    assert [each.count_exit(0) for each in (three[2], three[0], three[1])] == [1, 2, 3]
    assert three[0].count_exit(1) == 1


def test_what_nodes_post_is_gathered_by_node_0_in_their_order(three):
    for each in (three[2], three[0]):
        each.store.post("facts", each.node_rank)
    assert three[0].store.gather("facts", 0.0) == [0, 2]


def test_under_srun_node_0_alone_reports_the_exit_code(connect):
    outcome = Outcome.failed("why", 7, {})
    first, second = connect(0, slurm_job="12"), connect(1, slurm_job="12")
    assert first.as_seen_by_scheduler(outcome) == outcome
    seen = second.as_seen_by_scheduler(outcome)
    assert (seen.exit_code, seen.message) == (0, None)
    signalled = Outcome.signalled(signal.SIGTERM)  # this node itself was
    assert second.as_seen_by_scheduler(signalled).exit_code == signalled.exit_code


def test_a_lost_node_0_does_not_abort_a_job_that_is_done():
    state = JobState()
    state.apply(Event.DONE, None)
    state.apply(Event.ABORT, AbortReason(node=None, message="node0 is lost", code=1).as_dict())
    assert state.abort_reason is None
    state.apply(Event.ABORT, AbortReason(node=2, message="interrupted", code=130).as_dict())
    assert state.abort_reason.node == 2


@pytest.mark.parametrize(
    ("counters", "lost"),
    [
        ({1: "7777777", 2: "0123456"}, [[], [], [], [1], [1], [1], [1]]),
        ({1: "7777777", 2: "1222222"}, [[], [], [], [1, 2], [1, 2], [1, 2], [1, 2]]),
        ({1: "1222222", 2: "7777777"}, [[], [], [], [1, 2], [1, 2], [1, 2], [1, 2]]),
        ({1: "7778888", 2: "0123456"}, [[], [], [], [], [], [], [1]]),
        ({1: "0123456", 2: "0123456"}, [[], [], [], [], [], [], []]),
    ],
    ids=["one", "both, the second later", "both, the first later", "one that comes back, and is lost then", "none"],
)
def test_nodes_whose_heartbeats_stand_still_are_lost_together_but_never_node_0(counters, lost):
    tracker = LivenessTracker()
    beats = zip(*counters.values(), strict=True)
    found = [tracker.find_lost({0: b"1", **dict(enumerate(map(str.encode, beat), 1))}, 3.0) for beat in beats]
    assert found == lost


@pytest.mark.parametrize(
    ("progress", "fires"),
    [
        ("moving stalled", False),
        ("stalled done unknown", True),
        ("done unknown", False),
        ("stalled", True),
    ],
)
def test_ranks_are_probed_when_some_stall_and_none_moves(progress, fires):
    trigger = ProbeTrigger()
    found = [Progress(word) for word in progress.split()]
    assert [trigger.fires(found), trigger.fires(found)] == [fires, False]
