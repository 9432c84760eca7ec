"""What works without the extras `submit` and `kubernetes`, and what names them."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.init_project import write_project

ROOT = Path(__file__).parents[3]
MAIN = "import sys; sys.path.insert(0, {!r}); sys.modules[{!r}] = None; from launcher.cli import main; sys.exit(main())"


@pytest.fixture
def folder(tmp_path):
    write_project(tmp_path / "demo", "plain")
    return tmp_path / "demo"


def mimo_launch(words, cwd, *, without):
    code = MAIN.format(str(ROOT), without)
    command = [sys.executable, "-c", code, *words.split()]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.parametrize(
    "words",
    [
        "submit job.yaml --to slurm --dry-run",
        "submit job.yaml --to kubernetes --image vlm:1 --dry-run",
        "status kubernetes://mimo/vlm",
        "cancel kubernetes://mimo/vlm",
    ],
)
def test_what_needs_torchx_names_its_extra(folder, words):
    done = mimo_launch(words, folder, without="torchx")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("mimo-launch: submitted jobs need torchx (No module named 'torchx")
    assert line.endswith('install it: pip install "mimo-launch[submit]"')


def test_kubernetes_without_its_client_names_its_extra(folder):
    words = "submit job.yaml --to kubernetes --image vlm:1 --option queue=default --dry-run"
    done = mimo_launch(words, folder, without="kubernetes")
    assert done.returncode == 2
    assert done.stderr.endswith('install its client: pip install "mimo-launch[kubernetes]"\n')


@pytest.mark.parametrize("words", ["init other", "plan job.yaml", "schema"])
def test_commands_that_submit_nothing_work_without_torchx(folder, words):
    done = mimo_launch(words, folder, without="torchx")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.ranks
def test_a_job_runs_and_is_read_without_torchx(folder):
    done = mimo_launch("run job.yaml", folder, without="torchx")
    assert done.returncode == 0, done.stderr
    for words in ("status runs/first-job", "logs runs/first-job"):
        done = mimo_launch(words, folder, without="torchx")
        assert (done.returncode, done.stderr) == (0, ""), words
    done = mimo_launch("cancel runs/first-job", folder, without="torchx")
    assert "a run on this machine, not a submitted job" in done.stderr
