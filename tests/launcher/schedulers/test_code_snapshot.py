"""Copies of the code for queued jobs."""

import subprocess
from pathlib import Path

import pytest

from launcher.errors import LaunchError
from launcher.schedulers import code_snapshot
from launcher.schedulers.submission import JobRecord, Submission
from tests.launcher.schedulers.plans import request


def git(folder, *words):
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def names_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "a repository"
    (folder / "package").mkdir(parents=True)
    git(folder, "init")
    (folder / ".gitignore").write_text("runs/\n*.bin\n")
    (folder / "package" / "train.py").write_text("old")
    (folder / "gone.py").touch()
    git(folder, "add", "-A")
    git(folder, "commit", "-m", "x")
    (folder / "package" / "train.py").write_text("changed")
    (folder / "gone.py").unlink()
    (folder / "new é\n.py").touch()
    (folder / "weights.bin").touch()
    (folder / "link.py").symlink_to("package/train.py")
    return folder


def test_a_work_tree_is_copied_with_changes_and_without_ignored_files(repository, tmp_path):
    copies = code_snapshot.take(repository / "package", None, tmp_path / "copy")
    (copy,) = copies.values()
    assert list(copies) == [repository]
    assert names_below(copy) == {".gitignore", "package/train.py", "new é\n.py", "link.py"}
    assert (copy / "package" / "train.py").read_text() == "changed"
    assert (copy / "link.py").readlink() == Path("package/train.py")


def test_submodules_are_copied_too(repository, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init")
    (other / "core.py").write_text("core")
    git(other, "add", "-A")
    git(other, "commit", "-m", "x")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "add", str(other), "megatron")
    (repository / "megatron" / "core.py").write_text("changed")
    (copy,) = code_snapshot.take(repository, None, tmp_path / "copy").values()
    assert (copy / "megatron" / "core.py").read_text() == "changed"


def test_another_directory_is_copied_without_caches_environments_and_runs(tmp_path):
    folder = tmp_path / "code"
    code = ("train.py", "lib/a.py", "lib/jobs/queue.py")
    for name in (*code, "__pycache__/a.pyc", ".venv/bin/python", "runs/vlm/run_id", "runs/vlm/logs/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (copy,) = code_snapshot.take(folder, None, tmp_path / "copy").values()
    assert names_below(copy) == set(code)


def test_the_tree_of_a_script_elsewhere_is_copied_too(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "there" / "train.py").touch()
    copies = code_snapshot.take(tmp_path / "here", str(tmp_path / "there" / "train.py"), tmp_path / "copy")
    assert list(copies) == [tmp_path / "here", tmp_path / "there"]
    assert (copies[tmp_path / "there"] / "train.py").exists()


def test_a_tree_too_large_to_be_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(code_snapshot, "MOST_BYTES", 2 << 20)
    (tmp_path / "code").mkdir()
    with (tmp_path / "code" / "data").open("wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(LaunchError, match=r"--snapshot: .*code has more than 2 MiB of files; run from the directory"):
        code_snapshot.take(tmp_path / "code", None, tmp_path / "copy")


def test_a_submission_keeps_the_config_and_a_plan_over_the_copy(repository, monkeypatch):
    monkeypatch.chdir(repository)
    made = request(repository, "entry.script=package/train.py")
    submission, plan, cwd = Submission.new(made.plan, made.config_text, snapshot=True)
    assert cwd == submission.path / "code" / "0"
    assert plan.entry.script == str(cwd / "package" / "train.py")
    assert plan.run_dir == str(repository / "runs" / "vlm") == str(submission.run_dir.path)
    assert submission.plan_file.read_text() == plan.to_json()
    assert Submission.latest(submission.run_dir) is None
    submission.record(JobRecord("slurm", "12"))
    assert Submission.latest(submission.run_dir).recorded() == JobRecord("slurm", "12")
