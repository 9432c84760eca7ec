"""Ctrl-C in a job: scripts may save first; signals that are ignored from the start stay ignored."""

import json
import os
import signal
import subprocess
import sys

import pytest

from launcher.agent.interrupts import held_back
from tests.launcher.jobs import ROOT, lines_of, without_waiting
from tests.launcher.terminal_user import CTRL_C, at_terminal

pytestmark = pytest.mark.ranks

RANKS = 3

SAVES = """
import os, time
try:
    print("ready", flush=True)
    while True:
        time.sleep(0.1)
except KeyboardInterrupt:
    time.sleep(0.3)
    open("saved" + os.environ["RANK"], "w").close()
    print("saved", flush=True)
"""


def saved(job):
    return sorted(path.name for path in job.folder.glob("saved*"))


def test_ctrl_c_at_a_terminal_lets_every_rank_save(job):
    with at_terminal(job, SAVES, "runtime.join=script") as user:
        user.wait_for("ready", RANKS)
        user.type(CTRL_C)
        assert user.finish() == 130, user.seen
    assert saved(job) == ["saved0", "saved1", "saved2"]
    assert user.seen.splitlines()[-1] == "mimo-launch: interrupted"
    assert "failed" not in user.seen


@pytest.mark.parametrize("kind", ["forkserver", "spawn", "command"])
def test_sigint_to_mimo_launch_alone_lets_every_rank_save(job, kind):
    if kind == "command":
        command = json.dumps({"command": [sys.executable, "script.py"]})
        job.config = job.config.replace("{script: script.py}", command)
    process = job.start(SAVES, f"runtime={{join: script, start_method: {'spawn' if kind == 'spawn' else 'forkserver'}}}")
    for _ in range(RANKS):
        assert process.stdout.readline().endswith("ready\n")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "mimo-launch: interrupted")
    assert saved(job) == ["saved0", "saved1", "saved2"]
    assert out.count("saved") == RANKS


STAYS = """
import signal, time
def note(number, _):
    print("got", signal.Signals(number).name, flush=True)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("ready", flush=True)
while True:
    time.sleep(100)
"""


def test_each_further_ctrl_c_shortens_the_wait_for_ranks_that_stay(job):
    with at_terminal(job, STAYS, "runtime={join: script, grace_s: 1000}") as user:
        user.wait_for("ready", RANKS)
        user.type(CTRL_C)
        user.wait_for("got SIGINT", RANKS)
        user.wait_for("mimo-launch: SIGINT sent; waiting up to 1000 s for ranks 0-2 to end (Ctrl-C: SIGTERM at once)")
        user.type(CTRL_C)
        user.wait_for("got SIGTERM", RANKS)
        user.wait_for("mimo-launch: SIGTERM sent; waiting up to 1000 s for ranks 0-2 to end (Ctrl-C: SIGKILL at once)")
        user.type(CTRL_C)
        assert user.finish() == 130, user.seen


AT_THE_IMPORT_OF_TORCH = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and "run" in sys.argv:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), signal.{number})
                [None for _ in range(1000)]
            except BaseException:  # as in C++ code of torch's
                pass
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(("number", "code", "message"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "ended by SIGTERM")])
def test_a_signal_while_torch_is_imported_ends_the_job(job, number, code, message):
    (job.folder / "sitecustomize.py").write_text(AT_THE_IMPORT_OF_TORCH.format(number=number))
    job.environ["PYTHONPATH"] = f"{ROOT}:{job.folder}"
    job.program = ["env", "--default-signal=INT", *job.program]
    done = job.run("open('started', 'w')")
    assert (done.returncode, done.stderr) == (code, f"mimo-launch: {message}\n")
    assert not (job.folder / "started").exists()


def test_ctrl_c_before_that_ends_the_job_at_once(job):
    with at_terminal(job, "open('started', 'w')") as user:
        user.wait_for("mimo-launch: 3 ranks")
        user.type(CTRL_C)
        assert user.finish() == 130, user.seen
    assert user.seen.endswith("mimo-launch: interrupted\n")
    assert "Traceback" not in user.seen
    assert not (job.folder / "started").exists()


def test_signals_that_are_held_back_are_handled_after_the_block_in_their_order():
    got = []
    before = {
        number: signal.signal(number, lambda number, _: got.append(number)) for number in (signal.SIGUSR1, signal.SIGUSR2)
    }
    try:
        signal.signal(signal.SIGWINCH, signal.SIG_IGN)
        with held_back(signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            for number in (signal.SIGUSR2, signal.SIGUSR1, signal.SIGWINCH):
                signal.raise_signal(number)
            assert got == []
        assert got == [signal.SIGUSR2, signal.SIGUSR1]
        assert signal.getsignal(signal.SIGWINCH) == signal.SIG_IGN
    finally:
        for number, handler in (before | {signal.SIGWINCH: signal.SIG_DFL}).items():
            signal.signal(number, handler)


IGNORES = """
import os, signal, time
print("ready", signal.getsignal(signal.SIGHUP).name, signal.getsignal(signal.SIGINT).name, flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
print("went on")
"""


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_signals_that_are_ignored_from_the_start_stay_ignored(job, start_method):
    job.write(IGNORES)
    process = subprocess.Popen(
        ["env", "--ignore-signal=HUP,INT", *job.command(f"runtime={{join: script, start_method: {start_method}}}")],
        cwd=job.folder,
        env=job.whole_environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    shown = [process.stdout.readline() for _ in range(RANKS)]
    for number in (signal.SIGHUP, signal.SIGINT):
        os.killpg(process.pid, number)  # as a terminal does that is closed
    (job.folder / "go").touch()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, without_waiting(err)) == (0, "")
    lines = lines_of("".join(shown) + out, "[language.tp1 r2]")
    assert lines == ["ready SIG_IGN SIG_IGN", "went on"]
