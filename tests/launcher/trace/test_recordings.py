"""Keeping recordings in the run directory, and reading them again."""

from types import SimpleNamespace

import pytest

from launcher.config.loader import load as load_config
from launcher.coordination.clock_offset import ClockOffset
from launcher.plan.planner import make_plan
from launcher.run_dir.layout import RunDirLayout
from launcher.trace.recordings import load, save, save_clock
from launcher.trace.writer import MOST_RANKS, ranks_to_show
from mimo_role import Topology
from mimo_role.host.node_dir import recording_file
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.ring import Ring

CONFIG = "name: two\nlayout: non_colocated\nmodules: {vision: {}, language: {}}\nentry: {script: train.py}\n"


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").touch()
    return make_plan(load_config(tmp_path / "job.yaml", [])[0], tmp_path / "job.yaml", ())


@pytest.fixture
def run_dir(tmp_path):
    layout = RunDirLayout(tmp_path / "run")
    for attempt in range(2):
        layout.attempt_dir(attempt).mkdir(parents=True)
    return layout


@pytest.fixture
def record(tmp_path):
    def record(rank, *steps):
        recorder = Recorder(Ring.create(recording_file(tmp_path, rank), rank, 2))
        for step in steps:
            recorder.begin_step(step)

    return record


def test_what_was_saved_is_loaded_with_the_nodes_clock(tmp_path, plan, run_dir, record):
    record(0, 5, 6)
    record(1, 5)
    assert save(run_dir, 0, tmp_path, range(2)) == 2
    offset = ClockOffset(offset_ns=1, error_ns=2, measured_ns=3)
    save_clock(run_dir, 0, 0, offset)
    found = load(run_dir, plan)
    assert (found.attempt, found.clocks) == (0, {0: offset})
    assert {rank: [each.step for each in one.records] for rank, one in found.by_rank.items()} == {0: [5, 6], 1: [5]}
    assert run_dir.recording_file(0, 0).stat().st_size < 1000


def test_ranks_that_recorded_nothing_leave_no_file(tmp_path, plan, run_dir, record):
    record(0)
    assert save(run_dir, 0, tmp_path, range(2)) == 0
    assert not list(run_dir.path.rglob("*.gz"))
    assert load(run_dir, plan) is None


def test_the_last_attempt_that_recorded_anything_is_loaded(tmp_path, plan, run_dir, record):
    record(0, 5)
    save(run_dir, 0, tmp_path, [0])
    assert load(run_dir, plan).attempt == 0
    record(0, 6)
    save(run_dir, 1, tmp_path, [0])
    assert load(run_dir, plan).attempt == 1


@pytest.mark.parametrize("keep", [0, 1, 40, 200])
def test_a_file_that_was_cut_short_counts_as_none(tmp_path, plan, run_dir, record, keep):
    record(0, 5)
    record(1, 5)
    save(run_dir, 0, tmp_path, range(2))
    file = run_dir.recording_file(0, 1)
    file.write_bytes(file.read_bytes()[:keep])
    assert list(load(run_dir, plan).by_rank) == [0]


def test_a_damaged_file_counts_as_none(tmp_path, plan, run_dir, record):
    record(0, 5)
    record(1, 5)
    save(run_dir, 0, tmp_path, range(2))
    file = run_dir.recording_file(0, 1)
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        assert 0 in load(run_dir, plan).by_rank


def test_only_some_ranks_steps_and_seconds_are_loaded(tmp_path, plan, run_dir, record):
    record(0, 5, 6, 7)
    record(1, 5)
    save(run_dir, 0, tmp_path, range(2))
    assert list(load(run_dir, plan, ranks=[1]).by_rank) == [1]
    assert [each.step for each in load(run_dir, plan, steps=range(6, 9)).by_rank[0].records] == [6, 7]
    assert [each.step for each in load(run_dir, plan, last_ns=0).by_rank[0].records] == [7]


def test_what_cannot_be_written_is_a_warning(tmp_path, run_dir, record, caplog):
    record(0, 5)
    run_dir.attempt_dir(0).rmdir()
    run_dir.attempt_dir(0).write_text("in the way")
    assert save(run_dir, 0, tmp_path, [0]) == 0
    assert "what this node's ranks have recorded is lost" in caplog.text


def test_the_trace_of_a_large_run_has_the_rank_that_failed_and_one_of_each_stage(tmp_path):
    plan = SimpleNamespace(
        topology=Topology.from_modules({"vision": {"dp": 256}, "language": {"tp": 8, "pp": 8, "dp": 16}}),
        nodes=[SimpleNamespace(ranks=range(at * 8, at * 8 + 8)) for at in range(160)],
    )
    shown = ranks_to_show(plan, 700)
    assert len(shown) == len(set(shown)) == MOST_RANKS
    assert {700, 0, *range(256, 1280, 128), *range(696, 704)} <= set(shown)
    assert ranks_to_show(plan, None)[:3] == [0, 256, 384]
