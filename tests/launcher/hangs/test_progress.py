"""Whether ranks make progress, by a clock that the tests move."""

import pytest

from launcher.hangs import progress as watching
from launcher.hangs.progress import ProgressWatch
from mimo_role.monitoring import node_dir
from mimo_role.monitoring.heartbeat import Heartbeat, beat_file

LIMIT_S = 10.0
LOOK_S = LIMIT_S / 20


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Node:
    """A watched node of three ranks."""

    def __init__(self, folder, clock, limit_s):
        self.clock = clock
        self.hearts = [Heartbeat(beat_file(folder, rank)) for rank in range(3)]
        self.watch = ProgressWatch(folder, range(3), limit_s)

    def beat(self, *ranks):
        for rank in ranks:
            self.hearts[rank].beat()

    def look(self, *alive):
        return self.watch.stands_still(alive or (0, 1, 2))

    def looks_until_still(self, *alive, most=200):
        """The seconds that pass until the node stands still; `None` if it does not."""
        began = self.clock.now
        for _ in range(most):
            self.clock.now += LOOK_S
            if self.look(*alive):
                return self.clock.now - began
        return None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watching.time, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def node(tmp_path, clock):
    return Node(tmp_path, clock, LIMIT_S)


def test_ranks_that_have_not_begun_to_tell_are_waited_for_as_long_as_they_like(node):
    assert node.looks_until_still() is None


def test_ranks_that_tell_nothing_new_stand_still_after_the_limit(node):
    node.beat(0, 1, 2)
    node.look()
    assert LIMIT_S < node.looks_until_still() <= LIMIT_S + 2 * LOOK_S


def test_one_rank_that_goes_on_is_progress(node):
    node.beat(0, 1, 2)
    for _ in range(100):
        node.beat(1)
        node.clock.now += LOOK_S
        assert not node.look()


def test_the_last_sign_of_progress_counts(node):
    node.beat(0, 1, 2)
    node.look()
    for _ in range(18):
        node.clock.now += LOOK_S
        node.look()
    node.beat(2)
    assert node.looks_until_still() > LIMIT_S


def test_progress_ends_a_standstill(node):
    node.beat(0)
    node.look()
    assert node.looks_until_still() is not None
    node.beat(0)
    node.clock.now += LOOK_S
    assert not node.look()


def test_ranks_that_have_ended_are_not_waited_for(node):
    node.beat(0, 1, 2)
    node.look()
    assert node.looks_until_still(0, 2) is not None


def test_a_node_without_ranks_that_tell_does_not_stand_still(node):
    node.beat(0)
    node.look()
    assert node.looks_until_still(1, 2) is None


def test_without_a_limit_nothing_stands_still(tmp_path, clock):
    node = Node(tmp_path, clock, 0.0)
    node.beat(0, 1, 2)
    node.look()
    assert node.looks_until_still() is None


def test_the_time_of_a_suspended_job_does_not_count(node):
    node.beat(0, 1, 2)
    node.look()
    for _ in range(5):
        node.clock.now += 3600.0
        assert not node.look()
    assert node.looks_until_still() is not None


def test_time_is_counted_the_same_however_often_it_is_asked(node):
    node.beat(0, 1, 2)
    node.look()
    for _ in range(1000):
        node.clock.now += LOOK_S / 100
        assert not node.look()
    assert abs(node.looks_until_still() - LIMIT_S / 2) < 3 * LOOK_S


def test_what_ranks_have_said_before_a_restart_is_forgotten(node, tmp_path):
    node.hearts[1].step(7)
    node.look()
    assert node.watch.last_step(1) == 7
    assert node.looks_until_still() is not None
    node_dir.clear(tmp_path)
    node.watch.start_again()
    assert not node.look()
    assert node.watch.pulses() == {0: None, 1: None, 2: None}
    assert node.watch.last_step(1) is None


def test_a_rank_that_is_started_again_is_watched_anew(node, tmp_path):
    node.beat(0, 1, 2)
    node.watch.start_again()
    Heartbeat(beat_file(tmp_path, 1)).step(3)
    assert {rank: pulse and pulse.last_step for rank, pulse in node.watch.pulses().items()} == {0: None, 1: 3, 2: None}
