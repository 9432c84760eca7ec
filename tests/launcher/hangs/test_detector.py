"""When the ranks of a node are probed, with a fake clock and without ranks."""

import os

import pytest

from launcher.config.loader import load
from launcher.coordination.single_node import SingleNode
from launcher.exit_code import ExitCode
from launcher.hangs import detector as detecting
from launcher.hangs import progress as watching
from launcher.hangs.detector import HangDetector
from launcher.hangs.probe import RankSnapshot
from launcher.plan.planner import make_plan
from launcher.run_dir.writer import RunDir
from mimo_role.host.node_dir import heartbeat_file
from mimo_role.monitoring.heartbeat import Heartbeat, recorded_joining

CONFIG = """
name: one
layout: non_colocated
modules: {vision: {}, language: {tp: 2}}
entry: {script: train.py}
runtime: {timeout_s: 100}
"""
RANKS = dict.fromkeys(range(3), os.getpid())


class Watched:
    """A node whose ranks are in this process."""

    def __init__(self, folder):
        (folder / "job.yaml").write_text(CONFIG)
        (folder / "train.py").touch()
        plan = make_plan(load(folder / "job.yaml", [])[0], folder / "job.yaml", ())
        run_dir = RunDir(folder / "run", "", plan.to_json(), "agent-1", "agent-1")
        self.nodes = SingleNode(plan, "alpha", "agent-1")
        self.said = []
        self.now = 1000.0
        self.detector = HangDetector(plan, folder, run_dir, self.nodes, self.said.append)

    def monotonic(self):
        return self.now

    def run(self, seconds):
        """Why the job is aborted within that time."""
        for _ in range(seconds):
            self.now += 1.0
            if (reason := self.detector.check(RANKS)) is not None:
                return reason
        return None


@pytest.fixture
def watched(tmp_path, monkeypatch):
    node = Watched(tmp_path)
    monkeypatch.setattr(watching.time, "monotonic", node.monotonic)
    monkeypatch.setattr(
        detecting,
        "probe_ranks",
        lambda _, pids, steps, __: [
            RankSnapshot(rank=rank, pid=pid, host="h", state="S", step=steps[rank], traces=()) for rank, pid in pids.items()
        ],
    )
    monkeypatch.setenv("MIMO_NODE_DIR", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    return node


def test_a_rank_that_joins_for_longer_than_the_timeout_ends_the_job(watched):
    with recorded_joining():
        assert watched.run(110) is None
        reason = watched.run(20)
    assert reason.code == ExitCode.STALLED
    assert reason.message.startswith("joining has taken ")
    assert "rank 0 (vision), rank 2 (language.tp1) held up the others" in reason.message


def test_ranks_that_have_joined_and_report_no_steps_run_without_limit(watched):
    with recorded_joining():
        assert watched.run(90) is None
    assert watched.run(1000) is None
    assert watched.nodes.state.probes == 0


def test_joining_is_limited_in_an_attempt_after_one_that_was_only_warned_of(watched, tmp_path):
    Heartbeat(heartbeat_file(tmp_path, 0)).beat()
    assert watched.run(100) is None
    assert len(watched.said) == 1
    heartbeat_file(tmp_path, 0).unlink()
    watched.detector.begin_attempt(1)
    with recorded_joining():
        assert watched.run(130) is not None
