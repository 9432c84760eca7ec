"""`mimo-launch top` as it is started: at a terminal, into a pipe, once."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.run_dir.layout import RunDirLayout
from tests.launcher.jobs import ROOT
from tests.launcher.live.views import live_view
from tests.launcher.terminal_user import CTRL_C, command_at_terminal

ENTER, LEAVE = "\x1b[?1049h\x1b[H", "\x1b[?1049l\x1b[?25h"
"""The codes that switch to the screen that is redrawn, and back."""
DONE = json.dumps({"outcome": "done", "exit_code": 0, "headline": None, "attempts": 1})


class Run:
    """The run directory of a run that is going on, and `mimo-launch top` for it."""

    def __init__(self, path):
        self.files = RunDirLayout(path)
        self.files.run_id_file.write_text("id", encoding="utf-8")
        self._lock = self.files.lock_file.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def write(self, **more):
        # An interval of a minute: it does not become stale, however slow this machine is.
        view = live_view(time=time.time(), began=time.time() - 720, interval_s=60.0, **more)
        self.files.live_file.with_suffix(".tmp").write_text(view.to_json(), encoding="utf-8")
        self.files.live_file.with_suffix(".tmp").replace(self.files.live_file)

    def end(self):
        self.files.report_file.write_text(DONE, encoding="utf-8")
        self._lock.close()

    def command(self, *words):
        return [sys.executable, "-m", "launcher", "top", str(self.files.path), "--interval", "0.1", *words]

    def output(self, *words, **environ):
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=60, check=False, env=self.environ(**environ)
        )
        return done.returncode, done.stdout, done.stderr

    def environ(self, **more):
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR", "TERM")}
        return kept | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | more

    def at_terminal(self, *words, **more):
        return command_at_terminal(self.command(*words), self.files.path, self.environ(**{"TERM": "xterm"} | more))


@pytest.fixture
def run(tmp_path):
    found = Run(tmp_path)
    found.write()
    yield found
    found.end()


@pytest.mark.parametrize(("key", "code"), [("q", 0), (CTRL_C, 130)])
def test_at_a_terminal_the_run_is_redrawn_until_the_user_leaves(run, key, code):
    with run.at_terminal() as user:
        user.wait_for(ENTER)
        user.wait_for("step 412 of 2,000")
        run.write(step=413)
        user.wait_for("step 413 of 2,000")
        user.type(key)
        assert user.finish() == code, user.seen
    after = user.seen.partition(LEAVE)[2]
    assert after == ("mimo-launch: interrupted\n" if code else "")


def test_at_a_terminal_the_last_state_remains_of_a_run_that_is_over(run):
    with run.at_terminal() as user:
        user.wait_for("q: quit")
        run.end()
        assert user.finish() == 0
    assert "over, done" in user.seen.partition(LEAVE)[2]
    assert "step 412 of 2,000" in user.seen.partition(LEAVE)[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_the_terminal_is_as_before(run, number):
    with run.at_terminal() as user:
        user.wait_for("q: quit")
        user.process.send_signal(number)
        assert user.finish() == -number
    assert user.seen.endswith(LEAVE)


def test_ctrl_z_leaves_the_screen_and_fg_returns_to_it(run):
    with run.at_terminal() as user:
        user.wait_for("q: quit")
        user.type("\x1a")
        user.wait_for(LEAVE)
        # Stopped: what is typed is read after it continues.
        assert os.WIFSTOPPED(os.waitpid(user.process.pid, os.WUNTRACED)[1])
        user.process.send_signal(signal.SIGCONT)
        user.wait_for(ENTER)
        user.wait_for("q: quit")
        user.type("q")
        assert user.finish() == 0


def test_the_page_follows_the_size_of_the_terminal(run):
    with run.at_terminal() as user:
        user.wait_for("q: quit")
        user.resize(9, 80)
        user.wait_for("up, down: lines 1-4 of 11")
        user.type("G")
        user.wait_for("up, down: lines 8-11 of 11")
        user.type("q")
        assert user.finish() == 0


def test_colors_can_be_turned_off(run):
    with run.at_terminal(NO_COLOR="1") as user:
        user.wait_for("q: quit")
        user.type("q")
        assert user.finish() == 0
    assert "\x1b[32m" not in user.seen


def test_a_terminal_that_cannot_redraw_gets_lines(run):
    with run.at_terminal(TERM="dumb") as user:
        user.wait_for("digits: step 412 of 2,000", 2)
        run.end()
        assert user.finish() == 0
    assert "\x1b" not in user.seen


def test_into_a_pipe_each_interval_is_a_line(run):
    with subprocess.Popen(run.command(), stdout=subprocess.PIPE, text=True, env=run.environ()) as process:
        first, second = process.stdout.readline(), process.stdout.readline()
        run.end()
        *_, last = process.stdout.read().splitlines()
    assert process.returncode == 0
    assert first == second
    assert first.startswith("digits: step 412 of 2,000 | 3.1 steps/s | 12.4k tokens/s | loss 2.314")
    assert last.startswith("digits: over, done | step 412 of 2,000")


def test_as_json_each_view_is_a_line(run):
    with subprocess.Popen(run.command("--json"), stdout=subprocess.PIPE, text=True, env=run.environ()) as process:
        assert json.loads(process.stdout.readline())["step"] == 412
        run.write(step=413)
        assert json.loads(process.stdout.readline())["step"] == 413
        run.end()
        assert process.stdout.read() == ""
    assert process.returncode == 0


def test_once_is_one_page(run):
    code, text, _ = run.output("--once")
    assert code == 0
    first, *_, last = text.splitlines()
    assert first == "digits | 6 ranks | 12 min | running"
    assert last.startswith("language  3 (language.dp1.tp0) on node0 (alpha)")
    _, narrow, _ = run.output("--once", COLUMNS="50")
    assert max(map(len, narrow.splitlines())) <= 50
    _, plain, _ = run.output("--once", PYTHONIOENCODING="ascii")
    assert "##" in plain


def test_once_as_json_is_the_view(run):
    code, text, _ = run.output("--once", "--json")
    assert (code, json.loads(text)["modules"].keys()) == (0, {"vision", "language"})
    run.files.live_file.unlink()
    assert run.output("--once", "--json") == (2, "", "mimo-launch: no rank has recorded a step (starting)\n")
    assert run.output("--once")[:2] == (0, "starting\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--interval", "0"], "mimo-launch: --interval 0: give between 0.1 and 3600 seconds\n"),
        (["--interval", "nan"], "mimo-launch: --interval nan: give between 0.1 and 3600 seconds\n"),
    ],
)
def test_an_interval_that_cannot_be_is_refused(run, words, message):
    assert run.output(*words) == (2, "", message)


def test_a_folder_without_a_run_is_refused(tmp_path):
    command = [sys.executable, "-m", "launcher", "top", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == f"mimo-launch: {tmp_path / 'none'}: neither the id of a job nor a run directory\n"
