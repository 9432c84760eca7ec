import pytest

from launcher.steps.job_steps import JobSteps
from launcher.steps.node_report import NodeReport
from launcher.steps.rank_step import RankStep


def report(node, *steps, recording=(0, 1), is_last=False):
    """`steps` are pairs of a rank and the number of a step."""
    return NodeReport(node, 0, recording, [RankStep(rank, step, 0.0, 1.0) for rank, step in steps], is_last)


def complete(steps, now_s=0.0, **more):
    return [(each.step, sorted(each.ranks)) for each in steps.complete(now_s, **more)]


def test_a_step_is_complete_once_all_ranks_that_record_have_ended_it():
    steps = JobSteps(nodes=1)
    steps.add(report(0, (0, 1), (0, 2), (1, 1)), 0.0)
    assert (complete(steps), steps.last_step) == ([(1, [0, 1])], 1)
    steps.add(report(0, (1, 2)), 1.0)
    assert (complete(steps), steps.last_step) == ([(2, [0, 1])], 2)
    assert complete(steps) == []


def test_nodes_that_have_not_reported_are_waited_for():
    steps = JobSteps(nodes=2)
    steps.add(report(0, (0, 1), recording=[0]), 0.0)
    assert complete(steps) == []
    steps.add(report(1, recording=[1]), 0.0)
    assert complete(steps) == []
    steps.add(report(1, (1, 1), recording=[1]), 0.0)
    assert complete(steps) == [(1, [0, 1])]


def test_a_rank_that_is_too_far_behind_is_not_waited_for():
    steps = JobSteps(nodes=1)
    others = [(rank, step) for step in range(2, 40) for rank in (0, 1)]
    steps.add(report(0, (0, 1), (1, 1), (2, 1), *others, recording=[0, 1, 2]), 100.0)
    assert complete(steps, 101.0) == [(1, [0, 1, 2])]
    assert complete(steps, 129.0) == []
    assert complete(steps, 131.0) == [(step, [0, 1]) for step in range(2, 40)]
    steps.add(report(0, (2, 2)), 132.0)
    assert complete(steps, 132.0) == []


@pytest.mark.parametrize("first", [pytest.param([(1, 1)], id="stops"), pytest.param([], id="only-logs")])
def test_a_rank_that_takes_no_further_steps_delays_others_once(first):
    steps = JobSteps(nodes=1)
    steps.add(report(0, *first, *((0, step) for step in range(1, 30))), 0.0)
    complete(steps, 1.0)
    assert steps.last_step == (1 if first else None)
    assert complete(steps, 31.0)[-1] == (29, [0])
    for step in range(30, 40):
        steps.add(report(0, (0, step)), float(step + 2))
        assert (complete(steps, float(step + 2)), steps.last_step) == ([(step, [0])], step)


def test_a_rank_that_has_caught_up_is_waited_for_again():
    steps = JobSteps(nodes=1)
    steps.add(report(0, (1, 1), *((0, step) for step in range(1, 30))), 0.0)
    assert complete(steps, 31.0)[-1] == (29, [0])
    steps.add(report(0, *((1, step) for step in range(2, 31))), 32.0)
    assert (complete(steps, 32.0), steps.last_step) == ([], 29)
    steps.add(report(0, (0, 30), (0, 31)), 33.0)
    assert complete(steps, 33.0) == [(30, [0, 1])]


def test_ranks_that_have_ended_far_behind_others_are_not_waited_for():
    steps = JobSteps(nodes=2)
    steps.add(report(0, (0, 1), recording=[0], is_last=True), 0.0)
    steps.add(report(1, *((1, step) for step in range(1, 21)), recording=[1]), 0.0)
    assert complete(steps, 1.0) == [(1, [0, 1])]
    steps.add(report(1, (1, 22), recording=[1]), 2.0)
    assert complete(steps, 2.0)[0] == (2, [1])
    assert steps.last_step == 22


def test_a_node_that_never_reports_delays_others_once():
    steps = JobSteps(nodes=2)
    steps.add(report(0, *((0, step) for step in range(1, 30)), recording=[0]), 0.0)
    assert complete(steps, 1.0) == []
    assert len(complete(steps, 31.0)) == 29
    steps.add(report(0, (0, 30), recording=[0]), 32.0)
    assert complete(steps, 32.0) == [(30, [0])]


def test_at_the_end_the_steps_are_left_that_most_ranks_have_ended():
    steps = JobSteps(nodes=1)
    steps.add(report(0, (0, 1), (1, 1), (0, 2), (0, 3), (2, 1)), 0.0)
    assert complete(steps) == [(1, [0, 1, 2])]
    steps.add(report(0, (1, 2), is_last=True), 0.0)
    assert complete(steps, is_over=True) == [(2, [0, 1])]
    assert steps.ended == {0}


def test_steps_that_few_ranks_have_reported_are_left_out_where_others_have_passed_them():
    steps = JobSteps(nodes=1)
    steps.add(report(0, (0, 2), (0, 3), (0, 4), (1, 2), (1, 4), recording=[0, 1]), 0.0)
    assert complete(steps) == [(2, [0, 1]), (4, [0, 1])]


@pytest.mark.parametrize(("nodes", "count"), [(1, 20_500), (16, 2500)])
def test_steps_that_are_waited_for_are_bounded(nodes, count):
    steps = JobSteps(nodes)
    steps.add(report(0, *((rank, step) for step in range(count) for rank in (0, 1)), recording=[0, 1, 2]), 0.0)
    assert len(complete(steps)) == 500
