"""The order in which the ranks of a start end, on this node and on all."""

import itertools
import subprocess
import sys
import threading

import pytest

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


def watched(tmp_path, ranks, stamp):
    run_dir = RunDir(tmp_path / "run", "config", "plan", "1", "1")
    pids = {rank: process.pid for rank, process in ranks.items()}
    return RankProcesses(pids, 0, run_dir, tmp_path, ProgressWatch(tmp_path, range(3), 0.0), stamp)


def end(ranks, *order):
    for rank in order:
        ranks[rank].communicate(b"\n", timeout=20)


def test_one_node_tells_the_order_itself(tmp_path, ranks):
    ends = watched(tmp_path, ranks, None)
    for already, rank in enumerate((2, 0, 1)):
        end(ranks, rank)
        while len(ends.so_far()) <= already:
            threading.Event().wait(0.001)
    ends.wait()
    assert {rank: ends.record(rank, 1).order for rank in ranks} == {2: 1, 0: 2, 1: 3}


def test_places_on_all_nodes_are_asked_for_once_each_and_in_order(tmp_path, ranks):
    asked = []

    def stamp(attempt):
        asked.append(attempt)
        return 10 * len(asked)

    ends = watched(tmp_path, ranks, stamp)
    end(ranks, 1)
    # Asked for again and again, as the agent does, while another ends.
    assert [ends.record(1, 1).order for _ in range(3)] == [10] * 3
    end(ranks, 0)
    assert ends.record(0, 1).order == 20
    assert asked == [0, 0]


def test_a_rank_of_another_node_may_have_ended_before(tmp_path, ranks):
    places = itertools.count(1, 2)
    ends = watched(tmp_path, ranks, lambda _: next(places))
    end(ranks, 0)
    assert ends.record(0, 1).order == 1
    assert not ends.elsewhere_before(1)
    end(ranks, 1)
    assert ends.record(1, 1).order == 3
    assert ends.elsewhere_before(3)


def test_a_rank_whose_place_is_not_known_comes_last(tmp_path, ranks, monkeypatch):
    monkeypatch.setattr("launcher.agent.rank_processes._STAMPED_S", 0.01)
    ends = watched(tmp_path, ranks, lambda _: 1)
    assert ends.record(2, 1).order > 10**6
