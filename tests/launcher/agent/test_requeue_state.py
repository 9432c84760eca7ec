"""When the ranks of a node count as having asked to be requeued, by a clock that the tests move."""

import signal

import pytest

from launcher.agent import requeue as requeues
from launcher.agent.requeue import Requeue


class Clock:
    now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(requeues, "time", clock)
    return clock


def ranks(*codes):
    return dict(enumerate(codes))


@pytest.mark.parametrize(
    ("codes", "is_pending", "is_complete"),
    [
        pytest.param((None, None), False, False, id="all run"),
        pytest.param((75, None), True, False, id="one runs"),
        pytest.param((75, 0, None), True, False, id="one runs, one is done"),
        pytest.param((75, -signal.SIGTERM, None), True, False, id="one runs, one was terminated"),
        pytest.param((75, 0), False, True, id="one is done"),
        pytest.param((75, 75), False, True, id="all ask"),
        pytest.param((75, -signal.SIGTERM), False, True, id="one was terminated"),
        pytest.param((0, 0), False, False, id="nobody asks"),
        pytest.param((75, 9), False, False, id="one has failed"),
        pytest.param((75, 9, None), False, False, id="one has failed, one runs"),
        pytest.param((75, -signal.SIGKILL), False, False, id="one was killed from outside"),
    ],
)
def test_ranks_ask_by_exit_code_75(clock, codes, is_pending, is_complete):
    requeue = Requeue(5.0, 50.0)
    assert requeue.is_pending(0, ranks(*codes)) is is_pending
    assert requeue.is_complete(0, ranks(*codes)) is is_complete


def test_ranks_that_do_not_end_in_time_are_overdue_and_may_be_killed(clock):
    requeue = Requeue(5.0, 50.0)
    assert requeue.is_pending(0, ranks(75, None))
    clock.now += 4.9
    assert requeue.is_pending(0, ranks(75, None))
    assert not requeue.is_overdue(0)
    clock.now += 0.2
    assert requeue.is_overdue(0)
    assert requeue.is_complete(0, ranks(75, -signal.SIGKILL))


def test_a_warning_gives_the_ranks_more_time(clock):
    requeue = Requeue(5.0, 50.0)
    requeue.warn()
    assert requeue.patience_s == 50.0
    assert requeue.is_pending(0, ranks(75, None))
    clock.now += 49.0
    assert not requeue.is_overdue(0)


def test_each_attempt_has_its_own_time(clock):
    requeue = Requeue(5.0, 50.0)
    assert requeue.is_pending(0, ranks(75, None))
    clock.now += 100.0
    assert requeue.is_overdue(0)
    assert requeue.is_pending(1, ranks(75, None))
    assert not requeue.is_overdue(1)
    assert not requeue.is_complete(1, ranks(75, -signal.SIGKILL))
