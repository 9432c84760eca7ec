"""Taking a run directory."""

import os

import pytest

from launcher.errors import LaunchError
from launcher.run_dir.writer import RunDir


def test_a_run_directory_has_one_owner_and_keeps_earlier_runs(tmp_path):
    first = RunDir(tmp_path, "config", "plan", "1", "1")
    with pytest.raises(LaunchError, match=rf"still going on \(process {os.getpid()} on "):
        RunDir(tmp_path, "config", "plan", "0", "0")
    first.close()
    second = RunDir(tmp_path, "other", "plan", "2", "2")
    assert (tmp_path / "config.yaml").read_text() == "other"
    assert (tmp_path / "previous" / first.run_id / "config.yaml").read_text() == "config"
    second.close()


def test_a_directory_with_files_of_the_user_is_refused_as_a_run_directory(tmp_path):
    (tmp_path / "config.yaml").write_text("mine")
    with pytest.raises(LaunchError, match=r"contains config.yaml and is not a run directory of mimo-launch"):
        RunDir(tmp_path, "config", "plan", "1", "1")
    assert (tmp_path / "config.yaml").read_text() == "mine"


def test_a_run_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match=r"run_dir: .*Not a directory"):
        RunDir(tmp_path / "file" / "run", "", "", "1", "1")
