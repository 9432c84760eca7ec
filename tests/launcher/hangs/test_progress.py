"""Whether ranks join and make progress, with a fake clock."""

from contextlib import ExitStack

import pytest

from launcher.hangs import progress as watching
from launcher.hangs.progress import JoiningWatch, ProgressWatch
from mimo_role.host import node_dir
from mimo_role.monitoring.heartbeat import Heartbeat, recorded_joining

LIMIT_S = 10.0
POLL_S = LIMIT_S / 20


class Clock:
    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


class Node:
    """A watched node of three ranks."""

    def __init__(self, folder, clock, limit_s):
        self.clock = clock
        self.hearts = [Heartbeat(node_dir.heartbeat_file(folder, rank)) for rank in range(3)]
        self.watch = ProgressWatch(folder, range(3), limit_s)

    def beat(self, *ranks):
        for rank in ranks:
            self.hearts[rank].beat()

    def poll(self, *alive):
        return self.watch.is_stalled(alive or (0, 1, 2))

    def seconds_until_still(self, *alive, most=200):
        """The seconds until the node counts as stalled; `None` if it does not."""
        began = self.clock.now
        for _ in range(most):
            self.clock.now += POLL_S
            if self.poll(*alive):
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


class Arrivals:
    """Three ranks of a node that join."""

    def __init__(self, folder, clock, monkeypatch, limit_s):
        self._monkeypatch = monkeypatch
        self._blocks = {}
        self.clock = clock
        self.watch = JoiningWatch(folder, range(3), limit_s)
        monkeypatch.setenv("MIMO_NODE_DIR", str(folder))

    def begin(self, rank):
        self._monkeypatch.setenv("RANK", str(rank))
        self._blocks[rank] = ExitStack()
        self._blocks[rank].enter_context(recorded_joining())

    def end(self, rank):
        self._blocks.pop(rank).close()

    def seconds_until_overdue(self, *alive, most=200):
        """The seconds until a rank is overdue; `None` if none is."""
        began = self.clock.now
        for _ in range(most):
            self.clock.now += POLL_S
            if self.watch.is_overdue(alive or (0, 1, 2)):
                return self.clock.now - began
        return None


@pytest.fixture
def arrivals(tmp_path, clock, monkeypatch):
    return Arrivals(tmp_path, clock, monkeypatch, LIMIT_S)


def test_ranks_that_do_not_join_are_not_overdue(arrivals):
    assert arrivals.seconds_until_overdue() is None


def test_a_rank_that_joins_is_overdue_after_the_limit(arrivals):
    arrivals.begin(1)
    assert LIMIT_S < arrivals.seconds_until_overdue() <= LIMIT_S + 3 * POLL_S
    assert list(arrivals.watch.seconds) == [1]


def test_each_rank_has_its_own_time(arrivals):
    arrivals.begin(0)
    assert arrivals.seconds_until_overdue(most=10) is None
    arrivals.begin(2)
    assert arrivals.seconds_until_overdue(most=5) is None
    assert arrivals.watch.seconds[0] > arrivals.watch.seconds[2] > 0
    arrivals.end(0)
    assert arrivals.seconds_until_overdue() > LIMIT_S / 2


def test_a_rank_that_has_joined_is_not_overdue_although_it_reports_no_steps(arrivals):
    arrivals.begin(0)
    assert arrivals.seconds_until_overdue(most=15) is None
    arrivals.end(0)
    assert arrivals.seconds_until_overdue() is None


def test_a_rank_that_has_exited_while_it_joined_is_not_overdue(arrivals):
    arrivals.begin(0)
    assert arrivals.seconds_until_overdue(1, 2) is None


def test_the_time_of_a_suspended_job_does_not_count_as_joining(arrivals):
    arrivals.begin(0)
    assert arrivals.seconds_until_overdue(most=2) is None
    for _ in range(5):
        arrivals.clock.now += 3600.0
        assert not arrivals.watch.is_overdue((0, 1, 2))
    assert arrivals.seconds_until_overdue() is not None


def test_ranks_without_a_first_heartbeat_are_waited_for_without_limit(node):
    assert node.seconds_until_still() is None


def test_ranks_without_new_heartbeats_are_stalled_after_the_limit(node):
    node.beat(0, 1, 2)
    node.poll()
    assert LIMIT_S < node.seconds_until_still() <= LIMIT_S + 2 * POLL_S


def test_one_rank_with_new_heartbeats_is_progress(node):
    node.beat(0, 1, 2)
    for _ in range(100):
        node.beat(1)
        node.clock.now += POLL_S
        assert not node.poll()


def test_the_last_heartbeat_counts(node):
    node.beat(0, 1, 2)
    node.poll()
    for _ in range(18):
        node.clock.now += POLL_S
        node.poll()
    node.beat(2)
    assert node.seconds_until_still() > LIMIT_S


def test_progress_ends_a_stall(node):
    node.beat(0)
    node.poll()
    assert node.seconds_until_still() is not None
    node.beat(0)
    node.clock.now += POLL_S
    assert not node.poll()


def test_ranks_that_have_exited_do_not_count(node):
    node.beat(0, 1, 2)
    node.poll()
    assert node.seconds_until_still(0, 2) is not None


def test_a_node_without_live_ranks_with_heartbeats_is_not_stalled(node):
    node.beat(0)
    node.poll()
    assert node.seconds_until_still(1, 2) is None


def test_without_a_limit_no_node_is_stalled(tmp_path, clock):
    node = Node(tmp_path, clock, 0.0)
    node.beat(0, 1, 2)
    node.poll()
    assert node.seconds_until_still() is None


def test_the_time_of_a_suspended_job_does_not_count(node):
    node.beat(0, 1, 2)
    node.poll()
    for _ in range(5):
        node.clock.now += 3600.0
        assert not node.poll()
    assert node.seconds_until_still() is not None


def test_time_counts_the_same_however_often_it_is_polled(node):
    node.beat(0, 1, 2)
    node.poll()
    for _ in range(1000):
        node.clock.now += POLL_S / 100
        assert not node.poll()
    assert abs(node.seconds_until_still() - LIMIT_S / 2) < 3 * POLL_S


def test_the_last_step_is_read_from_the_heartbeat(node):
    node.hearts[1].step(7)
    assert [node.watch.last_step(rank) for rank in range(3)] == [None, 7, None]


def test_a_reset_restarts_the_measurement(node):
    node.beat(0, 1, 2)
    node.poll()
    assert node.seconds_until_still() is not None
    node.watch.reset()
    assert node.seconds_until_still() > LIMIT_S
