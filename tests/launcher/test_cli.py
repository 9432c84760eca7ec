"""What mimo-launch prints about a run that it starts."""

import sys

import pytest

from launcher.cli import main

CONFIG = """\
name: job
layout: non_colocated
modules: {vision: {dp: 2}, language: {tp: 2}}
entry: {script: train.py}
runtime: {backend: nccl}
"""


@pytest.fixture
def _refused_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "train.py").touch()
    (tmp_path / "job.yaml").write_text(CONFIG)


@pytest.mark.usefixtures("_refused_job")
@pytest.mark.parametrize("is_terminal", [True, False], ids=["terminal", "file"])
def test_run_prints_first_what_it_starts_if_stderr_is_a_terminal(capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    assert main(["run", "job.yaml"]) == 2
    line = "mimo-launch: 4 ranks (vision dp2, language tp2; non_colocated) -> runs/job"
    assert (capsys.readouterr().err.splitlines()[0] == line) is is_terminal


@pytest.mark.usefixtures("_refused_job")
@pytest.mark.parametrize("words", [[], ["modules.vision.dp=3"], ["--json", "modules.vision.dp=3", "name=other"]])
def test_without_config_the_folders_job_yaml_is_taken(capsys, words):
    printed = []
    for config in ([], ["job.yaml"]):
        assert main(["plan", *config, *words]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != ""
