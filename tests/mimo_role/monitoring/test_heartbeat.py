import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.host.node_dir import heartbeat_file
from mimo_role.monitoring.heartbeat import Heartbeat, Pulse, is_joining, read_pulse, recorded_joining


@pytest.fixture
def path(tmp_path):
    return heartbeat_file(tmp_path, 3)


@pytest.fixture
def heart(path):
    return Heartbeat(path)


def progress(path):
    pulse = read_pulse(path)
    return pulse and (pulse.beats, pulse.first_step, pulse.last_step)


def test_there_is_no_file_before_the_first_heartbeat(heart, path):
    assert read_pulse(path) is None
    assert not path.exists()


def test_a_heartbeat_without_a_step_is_progress(heart, path):
    heart.beat()
    assert progress(path) == (1, None, None)
    heart.beat()
    assert progress(path) == (2, None, None)


def test_steps_without_numbers_are_counted_from_0(heart, path):
    heart.step()
    assert progress(path) == (1, 0, 0)
    heart.step()
    assert progress(path) == (2, 0, 1)


def test_numbered_steps_keep_the_first_number(heart, path):
    heart.step(100)
    heart.step(101)
    heart.step()
    assert progress(path) == (3, 100, 102)


def test_steps_of_the_schedule_count_unless_the_script_reports_steps(heart, path):
    heart.scheduled_step()
    heart.scheduled_step()
    assert progress(path) == (2, 0, 1)
    heart.step(7)
    heart.scheduled_step()
    assert progress(path) == (4, 0, 7)


def test_a_heartbeat_within_a_step_keeps_the_step(heart, path):
    heart.step(5)
    heart.beat()
    assert progress(path) == (2, 5, 5)


@given(st.lists(st.none() | st.integers(0, 2**40), min_size=1, max_size=20))
def test_the_last_step_is_read(tmp_path_factory, numbers):
    path = tmp_path_factory.mktemp("node") / "heartbeat"
    heart, expected = Heartbeat(path), []
    for number in numbers:
        heart.step(number)
        expected.append((expected[-1] + 1 if expected else 0) if number is None else number)
        assert progress(path) == (len(expected), expected[0], expected[-1])


def test_nothing_is_written_outside_of_mimo_launch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    heart = Heartbeat(None)
    heart.step()
    heart.beat()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parent", ["gone", "/dev/full", "/proc"])
def test_an_unwritable_path_is_no_error(tmp_path, parent):
    heart = Heartbeat(tmp_path / parent / "rank0.heartbeat")
    for _ in range(3):
        heart.step()


def test_a_removed_node_directory_is_no_error(heart, path):
    heart.step()
    path.unlink()
    path.parent.rmdir()
    heart.step()
    assert read_pulse(path) is None


@pytest.mark.parametrize("content", [b"", b"\1" * 39, b"short", b"\1" * 41])
def test_an_incomplete_file_is_ignored(path, content):
    path.write_bytes(content)
    assert read_pulse(path) is None
    assert not is_joining(path)


@pytest.fixture
def of_agent(path, monkeypatch):
    monkeypatch.setenv("MIMO_NODE_DIR", str(path.parent))
    monkeypatch.setenv("RANK", "3")


@pytest.mark.usefixtures("of_agent")
def test_joining_is_recorded_as_long_as_it_lasts(heart, path):
    assert not is_joining(path)
    with recorded_joining():
        assert is_joining(path)
        assert read_pulse(path) is None
    assert not is_joining(path)
    assert read_pulse(path) is None


@pytest.mark.usefixtures("of_agent")
def test_joining_that_fails_is_over(path):
    with pytest.raises(ConnectionError), recorded_joining():
        raise ConnectionError
    assert not is_joining(path)


@pytest.mark.usefixtures("of_agent")
def test_joining_and_heartbeats_do_not_overwrite_each_other(heart, path):
    heart.step(7)
    with recorded_joining():
        heart.beat()
        assert is_joining(path)
    assert progress(path) == (2, 7, 7)


def test_joining_outside_of_mimo_launch_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with recorded_joining():
        pass
    assert list(tmp_path.iterdir()) == []


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
def test_the_heartbeat_outlives_its_rank(path, number):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", BEATS.format(int(number)), str(path)], env=environment, cwd=path.parent, timeout=60, check=False
    )
    assert done.returncode == -number
    assert progress(path) == (3, 0, 2)


def test_a_heartbeat_is_visible_to_other_processes_at_once(heart, path):
    heart.step(4)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(progress, (path,)) == (1, 4, 4)
        heart.step(5)
        assert pool.apply(progress, (path,)) == (2, 4, 5)


def _take_steps(path, count):
    heart = Heartbeat(path)
    for _ in range(count):
        heart.step()


@pytest.mark.timeout(60)
def test_a_pulse_is_never_seen_half_written(path):
    process = multiprocessing.get_context("fork").Process(target=_take_steps, args=(path, 100_000))
    process.start()
    last = Pulse(0, 0, 0)
    while last.beats < 100_000:
        if (pulse := read_pulse(path)) is None:
            assert last.beats == 0, "it was there before"
            continue
        assert (pulse.first_step, pulse.is_numbered) == (0, False)
        assert last.beats <= pulse.beats
        assert last.last_step <= pulse.last_step
        last = pulse
    process.join()
    assert (process.exitcode, last) == (0, Pulse(100_000, 0, 99_999, is_numbered=False))
