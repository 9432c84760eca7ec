"""How the processes of a rehearsal end, and what they leave."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

CONFIG = """\
name: small
layout: colocated
modules: {language: {}}
entry: {script: script.py}
"""


@pytest.fixture
def rehearse_one(rehearse, job):
    """Rehearse a script that one rank runs."""
    job.config = CONFIG
    return rehearse


@pytest.mark.parametrize(
    ("script", "code", "ending"),
    [
        pytest.param("import os; os._exit(3)", 3, "exit code 3", id="without exit functions"),
        pytest.param("import ctypes; ctypes.string_at(0)", 1, "killed by SIGSEGV", id="crash"),
        pytest.param(
            "import os; os.execv('/bin/true', ['true'])",
            1,
            "mimo_role.errors.MimoError: a rehearsal ends where a script replaces",
            id="exec",
        ),
        pytest.param("print('x' * 5_000_000); raise ValueError('after it')", 1, "ValueError: after it", id="much output"),
    ],
)
def test_the_end_of_a_script_is_that_of_its_kind(rehearse_one, script, code, ending):
    done = rehearse_one(script)
    assert done.returncode == code
    assert f"mimo-launch: language (rank 0): {ending}" in done.stderr
    assert "xxx" not in done.stderr
    assert "Traceback" not in done.stderr


def test_processes_of_the_script_are_not_taken_for_the_rank(rehearse_one):
    script = """\
import os, subprocess, sys, mimo_role
from torch.utils.data import DataLoader
ctx = mimo_role.current()
assert sum(len(batch) for batch in DataLoader(range(8), num_workers=2)) == 8
pid = os.fork()
if pid == 0:
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
if os.fork() == 0:
    sys.exit(5)
assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
ctx.step(1)
"""
    done = rehearse_one(script)
    assert done.returncode == 0, done.stderr
    assert done.found["kinds"][0]["steps"] == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_processes(job, number, code):
    job.config = CONFIG
    job.write(
        "import pathlib, subprocess, sys, time\n"
        "helper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path('helper.new').write_text(str(helper.pid))\n"
        "pathlib.Path('helper.new').rename('helper')\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen(
        ["env", "--default-signal=INT", *job.program, "rehearse", job.name],
        cwd=job.folder,
        env=job.whole_environ(),
        stderr=subprocess.PIPE,
        text=True,
    )
    helper = job.folder / "helper"
    while not helper.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    while is_running(int(helper.read_text())):  # the reaper ends what is left, which the timeout of the test limits
        time.sleep(0.05)


def test_results_that_cannot_be_written_are_printed(rehearse_one):
    script = (
        "import pathlib, mimo_role\n"
        "(mimo_role.current().run_dir.parents[1] / 'rehearsal.json' / 'in the way').mkdir(parents=True, exist_ok=True)\n"
    )
    done = rehearse_one(script)
    assert done.returncode == 0
    assert "rehearsal.json: Is a directory; the results are printed only" in done.stderr
    assert "1 rank is 1 kind" in done.stderr


def is_running(pid):
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_rank_of_a_real_run_has_imported_nothing_of_rehearsals(job):
    job.config = CONFIG
    done = job.run(
        "import sys, torch, mimo_role, mimo_role.checkpoint\n"
        "mimo_role.current().step(1)\n"
        "assert not [name for name in sys.modules if 'rehears' in name]\n"
    )
    assert done.returncode == 0, done.stderr
