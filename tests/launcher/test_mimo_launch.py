"""mimo-launch as pip installs it: its files in a virtual environment, and a console script."""

import json
import shutil
import site
import subprocess
import sys

import pytest

from tests.launcher.jobs import ROOT, lines_of

CONSOLE_SCRIPT = """\
#!{python}
import sys
from mimo_launch import main
sys.exit(main())
"""
OWN_LAUNCHER = """
import os, sys, launcher, launcher.training
print(launcher.training.MINE, os.path.dirname(launcher.__file__) == os.path.join(os.environ["PROJECT"], "launcher"))
"""


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory):
    """Not an editable installation, which finds packages by import hooks."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=60)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    for name in ("launcher", "mimo_role"):
        shutil.copytree(ROOT / name, packages / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mimo_launch.py", packages)
    script = venv / "bin" / "mimo-launch"
    script.write_text(CONSOLE_SCRIPT.format(python=venv / "bin" / "python"))
    script.chmod(0o755)
    return script.parent


@pytest.fixture
def project(job, bin_folder):
    """A project with a package of its own named `launcher`."""
    (job.folder / "launcher").mkdir()
    (job.folder / "launcher" / "__init__.py").touch()
    (job.folder / "launcher" / "training.py").write_text("MINE = 'own'")
    (job.folder / "train").mkdir()
    (job.folder / "train" / "train.py").write_text(OWN_LAUNCHER)
    job.config = job.config.replace("script.py", "train/train.py")
    job.program = [str(bin_folder / "mimo-launch")]
    job.environ = {"PYTHONPATH": str(job.folder), "PROJECT": str(job.folder)}
    return job


@pytest.mark.ranks
@pytest.mark.parametrize("words", [["mimo-launch"], ["python", "-m", "mimo_launch"]], ids=" ".join)
def test_a_project_may_have_a_package_named_launcher_on_pythonpath(project, bin_folder, words):
    project.program = [str(bin_folder / words[0]), *words[1:]]
    done = project.run("")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == lines_of(done.stdout, "[language.tp1 r2]") == ["own True"]


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["spawn", "command", "module"])
def test_ranks_of_every_kind_find_the_projects_launcher(project, kind):
    words = ["python3", "train/train.py"]
    entry = {"command": {"command": words}, "module": {"module": "train.train"}}.get(kind, {"script": "train/train.py"})
    project.config = project.config.replace("{script: train/train.py}", json.dumps(entry))
    done = project.run("", f"runtime.start_method={'spawn' if kind == 'spawn' else 'forkserver'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == ["own True"]


@pytest.mark.ranks
def test_the_projects_path_may_be_in_the_config(project):
    path = project.environ.pop("PYTHONPATH")
    project.environ["PYTHONPATH"] = ""
    done = project.run("", f"env={json.dumps({'PYTHONPATH': path})}")
    assert (done.returncode, done.stderr) == (0, "")
    assert lines_of(done.stdout, "[vision r0]") == ["own True"]


def test_commands_that_start_nothing_find_mimo_launchs_own_files(project, bin_folder):
    for words in (["--version"], ["plan", "job.yaml"], ["schema"]):
        project.write("")
        done = subprocess.run(
            [bin_folder / "mimo-launch", *words],
            cwd=project.folder,
            env=project.whole_environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), words
