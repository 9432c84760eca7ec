"""The numbers that warnings of a plan take from a rehearsal of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.config.loader import load
from launcher.plan.planner import make_plan
from launcher.run_dir.rehearsed_traffic import with_rehearsed_traffic

CONFIG = """\
name: job
layout: non_colocated
modules: {vision: {dp: 2, pool: a}, language: {tp: 4, dp: 2, pool: b}}
pools: {a: {nodes: 1, procs_per_node: 2}, b: {nodes: 4, procs_per_node: 2}}
entry: {script: train.py}
"""
GIB = 1 << 30
TRAFFIC = {
    "language.tp": {"sent_bytes": 9 * GIB, "across_nodes_bytes": int(3.2 * GIB), "across_pools_bytes": 0},
    "language.tp_dp": {"sent_bytes": GIB, "across_nodes_bytes": GIB, "across_pools_bytes": 0},
    "vision stage 0 -> language stage 0, forward": {"sent_bytes": 0, "across_nodes_bytes": 0, "across_pools_bytes": 3 << 20},
    "vision stage 0 -> language stage 0, back": {"sent_bytes": 0, "across_nodes_bytes": 0, "across_pools_bytes": 1 << 20},
}
NOTE = "by the rehearsal in the run directory"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    path = tmp_path / "job.yaml"
    path.write_text(CONFIG)
    return make_plan(load(path, [])[0], path, [])


def write(job, **changes):
    found = {"plan": job.digest, "failures": [], "step_traffic": TRAFFIC} | changes
    folder = Path(job.run_dir) / "rehearsal"
    folder.mkdir(parents=True)
    (folder / "rehearsal.json").write_text(json.dumps(found))


def test_warnings_about_traffic_have_its_bytes(plan):
    write(plan)
    messages = {warning.code: warning.message for warning in with_rehearsed_traffic(plan).warnings}
    assert messages["tp_across_nodes"].endswith(f"in every layer; 3.2 GiB per step cross nodes, {NOTE}")
    assert messages["bridge_across_pools"].endswith(f"between the pools; 4.0 MiB per step cross pools, {NOTE}")


def test_the_digest_does_not_depend_on_the_numbers(plan):
    write(plan)
    assert with_rehearsed_traffic(plan).digest == plan.digest


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"plan": "0" * 64}, id="another plan"),
        pytest.param({"failures": ["language: ValueError"]}, id="a rehearsal that failed"),
        pytest.param({"step_traffic": []}, id="another form"),
        pytest.param({"step_traffic": {"vision.dp": {"sent_bytes": 1}}}, id="other groups"),
        pytest.param({"step_traffic": {"language.tp": {"sent_bytes": 1}}}, id="an entry without the number"),
    ],
)
def test_other_rehearsals_change_nothing(plan, changes):
    write(plan, **changes)
    assert with_rehearsed_traffic(plan) == plan


def test_a_job_that_was_not_rehearsed_is_as_before(plan):
    assert with_rehearsed_traffic(plan) == plan


def test_a_file_that_is_cut_off_changes_nothing(plan):
    write(plan)
    file = Path(plan.run_dir) / "rehearsal" / "rehearsal.json"
    file.write_text(file.read_text()[:40])
    assert with_rehearsed_traffic(plan) == plan


def test_a_module_on_two_pools_has_the_bytes_of_its_groups(plan):
    write(plan, step_traffic={"vision.dp": {"across_pools_bytes": 512}, "vision.pp": {"across_pools_bytes": 512}})
    warning = replace(plan.warnings[0], code="module_across_pools", message="on two pools", about="vision")
    (found,) = with_rehearsed_traffic(replace(plan, warnings=(warning,))).warnings
    assert found.message == f"on two pools; 1.0 KiB per step cross pools, {NOTE}"
