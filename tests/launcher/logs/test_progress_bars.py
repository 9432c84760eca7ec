"""Progress bars of ranks, as a user of `mimo-launch run` sees them."""

import os
import pty
import subprocess
import sys
from contextlib import contextmanager, suppress

import pytest

from tests.launcher.terminal.screen import Screen

CONFIG = """
name: bar
layout: colocated
modules: {language: {dp: 2}}
entry: {script: train.py}
runtime: {backend: gloo, join: script}
"""

SCRIPT = """
import pathlib, sys, time

sys.stderr.write("\\r 40%\\r 42%")
print("epoch 0")
while not pathlib.Path("go").exists():
    time.sleep(0.05)
sys.stderr.write("\\r100%\\n")
print("working... ", end="")
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job.yaml").write_text(CONFIG)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


@contextmanager
def running(folder, **streams):
    """The job, which ends when the block does, however it does."""
    command = [sys.executable, "-m", "launcher", "run", "job.yaml"]
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"TERM": "xterm"}, **streams) as job:
        try:
            yield job
        finally:
            (folder / "go").touch()


def read_to(descriptor, text):
    """The output up to a text, or the end of a terminal or pipe."""
    found = b""
    with suppress(OSError):  # all processes with the terminal have ended
        while text not in found and (data := os.read(descriptor, 4096)):
            found += data
    return found.decode()


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_a_bar_is_redrawn_at_the_bottom_of_a_terminal(folder):
    ours, theirs = pty.openpty()
    screen = Screen(width=200)
    with running(folder, stdin=theirs, stdout=theirs, stderr=theirs) as job:
        os.close(theirs)
        screen.write(read_to(ours, b"r0-1]  42%\x1b[0m\x1b[?7h\r"))
        assert screen.shown[-1] == "[language r0-1]  42%"
        (folder / "go").touch()
        screen.write(read_to(ours, b"the end"))
        os.close(ours)
    assert job.returncode == 0
    lines = {line.partition("] ")[2] for line in screen.shown if line.startswith("[")}
    assert lines == {"epoch 0", "100%", "working... "}


@pytest.mark.ranks
@pytest.mark.timeout(120)
def test_a_bar_is_printed_in_lines_to_a_pipe(folder):
    with running(folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as job:
        shown = read_to(job.stdout.fileno(), b"42%\n")
        (folder / "go").touch()
        shown += read_to(job.stdout.fileno(), b"the end")
    assert job.returncode == 0
    lines = {line.partition("] ")[2] for line in shown.splitlines() if line.startswith("[")}
    assert lines == {"epoch 0", " 42%", "100%", "working... "}
    assert "\x1b" not in shown
