"""The line that shows what a run starts."""

import pytest

from launcher.config.loader import load
from launcher.plan.planner import make_plan
from launcher.plan.render import summary


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("modules", "more", "line"),
    [
        (
            "{vision: {dp: 2}, language: {tp: 2}}",
            "layout: non_colocated",
            "4 ranks (vision dp2, language tp2; non_colocated) -> runs/job",
        ),
        ("{vision: {}, language: {}}", "layout: colocated", "1 rank (vision, language; colocated) -> runs/job"),
        (
            "{vision: {dp: 2}, language: {tp: 2, dp: 2, pp: 2}}",
            "layout: non_colocated\npools: {a: {nodes: 5, procs_per_node: 2}}\nrun_dir: /data/runs/${name}",
            "10 ranks on 5 nodes (vision dp2, language tp2 dp2 pp2; non_colocated) -> /data/runs/job",
        ),
    ],
    ids=["one node", "one rank", "five nodes"],
)
def test_the_summary_names_ranks_layout_and_run_directory(folder, modules, more, line):
    path = folder / "job.yaml"
    path.write_text(f"name: job\nmodules: {modules}\n{more}\nentry: {{script: train.py}}\n")
    assert summary(make_plan(load(path, [])[0], path, [])) == line
