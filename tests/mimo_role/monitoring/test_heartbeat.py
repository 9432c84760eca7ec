"""How a rank says how far it has come, and how that is read."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.monitoring.heartbeat import Heartbeat, beat_file, read_pulse


@pytest.fixture
def path(tmp_path):
    return beat_file(tmp_path, 3)


@pytest.fixture
def heart(path):
    return Heartbeat(path)


def told(path):
    pulse = read_pulse(path)
    return pulse and (pulse.beats, pulse.first_step, pulse.last_step)


def test_before_the_first_beat_there_is_nothing(heart, path):
    assert read_pulse(path) is None
    assert not path.exists()


def test_a_beat_is_progress_without_a_step(heart, path):
    heart.beat()
    assert told(path) == (1, None, None)
    heart.beat()
    assert told(path) == (2, None, None)


def test_steps_without_numbers_are_counted_from_0(heart, path):
    heart.step()
    assert told(path) == (1, 0, 0)
    heart.step()
    assert told(path) == (2, 0, 1)


def test_steps_with_numbers_keep_the_first_one(heart, path):
    heart.step(100)
    heart.step(101)
    heart.step()
    assert told(path) == (3, 100, 102)


def test_the_schedule_counts_as_long_as_the_script_does_not(heart, path):
    heart.scheduled_step()
    heart.scheduled_step()
    assert told(path) == (2, 0, 1)
    heart.step(7)
    heart.scheduled_step()
    assert told(path) == (4, 0, 7)


def test_a_beat_within_a_step_keeps_the_step(heart, path):
    heart.step(5)
    heart.beat()
    assert told(path) == (2, 5, 5)


@given(st.lists(st.none() | st.integers(0, 2**40), min_size=1, max_size=20))
def test_what_was_said_last_is_read(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("beats") / "beat"
    heart, expected = Heartbeat(path), []
    for number in numbers:
        heart.step(number)
        expected.append((expected[-1] + 1 if expected else 0) if number is None else number)
        assert told(path) == (len(expected), expected[0], expected[-1])


def test_outside_of_mimo_launch_nobody_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heart = Heartbeat(None)
    heart.step()
    heart.beat()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parent", ["gone", "/dev/full", "/proc"])
def test_a_rank_goes_on_where_nothing_can_be_told(tmp_path, parent):
    heart = Heartbeat(tmp_path / parent / "rank0.beat")
    for _ in range(3):
        heart.step()


def test_a_rank_goes_on_when_its_folder_is_removed(heart, path):
    heart.step()
    path.unlink()
    path.parent.rmdir()
    heart.step()
    assert read_pulse(path) is None


@pytest.mark.parametrize("content", [b"", b"\0" * 32, b"short", b"\1" * 33])
def test_a_file_that_is_not_whole_is_nothing(path, content):
    path.write_bytes(content)
    assert read_pulse(path) is None


BEATS = """
import os, sys
from pathlib import Path
from mimo_role.monitoring.heartbeat import Heartbeat
heart = Heartbeat(Path(sys.argv[1]))
for step in range(3):
    heart.step(step)
os.kill(os.getpid(), {})
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_what_a_rank_has_said_outlives_it(path, number):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", BEATS.format(int(number)), str(path)], env=environment, cwd=path.parent, timeout=60, check=False
    )
    assert done.returncode == -number
    assert told(path) == (3, 0, 2)


def test_a_beat_is_seen_by_another_process_at_once(heart, path):
    heart.step(4)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(told, (path,)) == (1, 4, 4)
        heart.step(5)
        assert pool.apply(told, (path,)) == (2, 4, 5)
