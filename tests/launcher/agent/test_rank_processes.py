"""The order in which the ranks of an attempt end, on this node and on all; and their end by the agent."""

import itertools
import signal
import subprocess
import sys
import threading

import pytest

from launcher.agent.interrupts import Interrupts
from launcher.agent.rank_processes import RankProcesses
from launcher.hangs.progress import ProgressWatch
from launcher.run_dir.writer import RunDir


@pytest.fixture
def ranks():
    started = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    yield dict(enumerate(started))
    for process in started:
        process.kill()
        process.communicate()


def watched(tmp_path, ranks, count_exit):
    run_dir = RunDir(tmp_path / "run", "config", "plan", "1", "1")
    (run_dir.attempt_dir(0)).mkdir()
    pids = {rank: process.pid for rank, process in ranks.items()}
    watch = ProgressWatch(tmp_path, range(3), 0.0)
    return RankProcesses(0, pids, lambda: exit_codes_of(ranks), run_dir, tmp_path, watch, count_exit)


def exit_codes_of(ranks):
    return {rank: process.poll() for rank, process in ranks.items()}


def places_of(processes):
    return {each.rank: each.order for each in processes.exits()}


def end(ranks, *order):
    for rank in order:
        ranks[rank].communicate(b"\n", timeout=20)


def test_places_are_counted_in_the_order_in_which_ranks_end(tmp_path, ranks):
    places = itertools.count(1)
    processes = watched(tmp_path, ranks, lambda _: next(places))
    for rank in (2, 0, 1):
        end(ranks, rank)
        assert rank in places_of(processes)  # waits until the end was seen
    assert {each.rank: each.order for each in processes.final_exits()} == {2: 1, 0: 2, 1: 3}


def test_a_place_is_counted_once_however_often_it_is_asked_for(tmp_path, ranks):
    asked = []

    def count_exit(attempt):
        asked.append(attempt)
        return 10 * len(asked)

    processes = watched(tmp_path, ranks, count_exit)
    end(ranks, 1)
    assert [places_of(processes) for _ in range(3)] == [{1: 10}] * 3
    end(ranks, 0)
    assert places_of(processes) == {1: 10, 0: 20}
    assert asked == [0, 0]


def test_a_rank_of_another_node_may_have_ended_before(tmp_path, ranks):
    places = itertools.count(1, 2)
    processes = watched(tmp_path, ranks, lambda _: next(places))
    end(ranks, 0)
    assert places_of(processes) == {0: 1}
    assert not processes.ended_elsewhere_before(1)
    end(ranks, 1)
    assert places_of(processes) == {0: 1, 1: 3}
    assert processes.ended_elsewhere_before(3)


def test_a_rank_whose_place_is_not_known_comes_last(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr("launcher.agent.rank_processes._PLACE_TIMEOUT_S", 0.01)
    seen = threading.Event()
    processes = watched(tmp_path, ranks, lambda _: seen.wait(20))
    end(ranks, 2)
    assert places_of(processes)[2] > 10**6
    seen.set()


def test_a_rank_that_has_ended_before_it_was_watched_has_a_place_too(tmp_path, ranks):
    end(ranks, 1)
    places = itertools.count(1)
    assert places_of(watched(tmp_path, ranks, lambda _: next(places))) == {1: 1}


def test_ranks_are_stopped_by_sigterm_and_signals_reach_those_that_run(tmp_path, ranks):
    processes = watched(tmp_path, ranks, lambda _: 1)
    end(ranks, 1)
    assert processes.alive(exit_codes_of(ranks)).keys() == {0, 2}
    processes.stop(20, Interrupts(), str)
    assert exit_codes_of(ranks) == {0: -signal.SIGTERM, 1: 0, 2: -signal.SIGTERM}


def test_ranks_that_ignore_sigterm_are_killed_after_the_grace_time(tmp_path):
    script = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        watched(tmp_path, {0: process}, lambda _: 1).stop(0.1, Interrupts(), str)
        assert process.returncode == -signal.SIGKILL


STAGES = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: print(number, flush=True))
print("ready", flush=True)
while True:
    time.sleep(60)
"""


def test_after_an_interrupt_each_further_one_sends_the_next_signal_at_once(tmp_path):
    interrupts, messages, received = Interrupts(), [], []

    def press(message):
        messages.append(message)
        received.append(process.stdout.readline())
        interrupts.count += 1

    interrupts.count = 1
    with subprocess.Popen([sys.executable, "-c", STAGES], stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        watched(tmp_path, {0: process}, lambda _: 1).stop(1000, interrupts, press)
    assert received == [f"{signal.SIGINT.value}\n", f"{signal.SIGTERM.value}\n"]
    assert process.returncode == -signal.SIGKILL
    assert messages == [
        "SIGINT sent; waiting up to 1000 s for ranks 0 to end (Ctrl-C: SIGTERM at once)",
        "SIGTERM sent; waiting up to 1000 s for ranks 0 to end (Ctrl-C: SIGKILL at once)",
    ]
