"""The state of a run that is watched."""

import fcntl
import json

import pytest

from launcher import jobs
from launcher.errors import LaunchError
from launcher.outcome import Outcome
from launcher.top.moment import Age, State
from launcher.top.run_source import RunSource
from tests.launcher.live.views import live_view


class Run:
    """A run directory, and two clocks."""

    def __init__(self, path):
        (path / "run_id").write_text("id", encoding="utf-8")
        self.files = jobs.find(str(path)).run_dir
        self.wall = 1720.0
        self.now = 0.0
        self.source = RunSource(jobs.find(str(path)), lambda: self.wall, lambda: self.now)
        self._lock = self.files.lock_file.open("w")

    def begin(self):
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def end(self, outcome=None):
        if outcome is not None:
            self.files.report_file.write_text(json.dumps(outcome.as_dict()), encoding="utf-8")
        self._lock.close()

    def write(self, **more):
        self.files.live_file.write_text(live_view(**more).to_json(), encoding="utf-8")

    def wait(self, seconds):
        self.wall += seconds
        self.now += seconds

    def state(self):
        moment = self.source.read()
        return moment.state, moment.note


@pytest.fixture
def run(tmp_path):
    found = Run(tmp_path)
    found.begin()
    yield found
    found.end()


def test_a_run_without_a_view_is_starting(run):
    assert run.state() == (State.WAITING, "starting")


def test_a_view_that_does_not_change_is_stale_after_three_intervals(run):
    run.write()
    assert run.state() == (State.RUNNING, "running")
    run.wait(3)
    assert run.state() == (State.RUNNING, "running")
    run.wait(9)
    assert run.state() == (State.STALE, "no news for 12 s")
    run.write(time=1721.0)
    assert run.state() == (State.RUNNING, "running")


def test_a_view_is_stale_at_the_first_look_if_it_is_old(run):
    run.write(time=1620.0)
    assert run.state() == (State.STALE, "no news for 1 min 40 s")


def test_a_clock_that_differs_misleads_at_the_first_look_only(run):
    run.write(time=1620.0)
    run.source.read()
    run.write(time=1621.0)
    run.wait(1)
    assert run.state() == (State.RUNNING, "running")


def test_between_two_attempts_no_news_is_expected(run):
    run.write(is_last=True)
    run.source.read()
    run.wait(10)
    assert run.state() == (State.WAITING, "attempt 0 has ended")


def test_a_view_of_the_future_is_not_old():
    assert Age().of(live_view(time=5000.0), wall=1000.0, now=7.0) == 0.0


@pytest.mark.parametrize(
    ("outcome", "note"),
    [
        pytest.param(Outcome.done(), "over, done", id="done"),
        pytest.param(Outcome.failed("rank 1 failed\nmore", 3, {}), "over, failed: rank 1 failed", id="failed"),
        pytest.param(None, "over, without a report: mimo-launch was killed, or could not write", id="killed"),
    ],
)
def test_the_outcome_is_the_last_state(run, outcome, note):
    run.write()
    run.source.read()
    run.end(outcome)
    run.wait(10)
    assert run.state() == (State.OVER, note)
    assert run.source.read().view == live_view()


def test_a_run_without_locks_is_running_while_its_view_changes(run):
    run.end()
    run.write()
    assert run.state() == (State.RUNNING, "running")


def test_while_the_view_cannot_be_read_the_last_one_remains(run):
    run.write()
    run.source.read()
    run.files.live_file.unlink()
    assert run.source.read().view == live_view()


def test_a_view_of_another_version_is_refused(run):
    run.files.live_file.write_text('{"format": 0}', encoding="utf-8")
    with pytest.raises(LaunchError, match=r"live\.json: written by another version of mimo-launch"):
        run.source.read()
