"""A job's only node, which has the interface of a coordinator."""

import inspect

import pytest

from launcher.config.loader import load
from launcher.coordination.coordinator import Coordinator
from launcher.coordination.liveness import Progress
from launcher.coordination.single_node import SingleNode
from launcher.outcome import AbortReason, Outcome
from launcher.plan.planner import make_plan

CONFIG = "name: one\nlayout: non_colocated\nmodules: {vision: {}, language: {}}\nentry: {script: train.py}\n"


@pytest.fixture
def node(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").touch()
    return SingleNode(make_plan(load(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ()), "alpha", "run-1")


def test_its_public_methods_are_those_of_a_coordinator_with_the_same_parameters():
    """All but meet(), leave() and abort_after(), which `join_nodes` calls."""

    def methods(kind):
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: str(inspect.signature(method)) for name, method in found if not name.startswith("_")}

    theirs = methods(Coordinator)
    for name in ("meet", "leave", "abort_after"):
        del theirs[name]
    assert methods(SingleNode) == theirs


def test_it_is_there_at_once(node):
    assert (node.state.run_id, [str(member) for member in node.state.members]) == ("run-1", ["node0 (alpha)"])


def test_the_first_reason_for_an_abort_holds(node):
    first = AbortReason(node=0, message="first", code=1)
    assert node.abort(first) == first
    assert node.abort(AbortReason(node=0, message="second", code=2)) == first
    assert node.state.abort_reason == first


def test_the_job_is_done_with_its_ranks(node):
    node.report_done(0, requeue=False)
    assert (node.state.all_done, node.state.abort_reason) == (True, None)


def test_the_job_is_requeued_with_its_ranks(node):
    node.report_done(0, requeue=True)
    assert not node.state.all_done
    assert node.state.abort_reason.is_requeue


def test_ranks_are_probed_once_for_each_time_that_they_stall(node):
    found = []
    for progress in ("moving", "stalled", "stalled", "unknown", "stalled", "moving", "stalled", "done"):
        node.report_progress(Progress(progress))
        found.append(node.state.probes)
    assert found == [0, 1, 1, 1, 1, 1, 2, 2]


def test_values_are_put_found_counted_and_gathered(node):
    node.store.put("key", 3)
    assert (node.store.find("key"), node.store.find("other")) == (3, None)
    assert [node.count_exit(0), node.count_exit(0), node.count_exit(1)] == [1, 2, 1]
    assert node.store.gather("name", 0.0) == []
    node.store.post("name", {"a": 1})
    assert node.store.gather("name", 0.0) == [{"a": 1}]


def test_the_scheduler_sees_the_outcome_as_it_is(node):
    outcome = Outcome.failed("why", 7, {})
    assert node.as_seen_by_scheduler(outcome) is outcome


def test_ranks_join_over_a_new_store_for_each_attempt(node):
    first, second = node.open_rank_store(0), node.open_rank_store(1)
    assert first[1] == second[1] == "127.0.0.1"
    assert first[2] != second[2]
