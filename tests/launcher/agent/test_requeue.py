"""The warning that a job is about to end: from mimo-launch to the ranks of this machine, which may ask to be requeued."""

import os
import signal
from pathlib import Path

import pytest

from tests.launcher.jobs import lines_of, without_waiting

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

LABELS = ["[vision r0]", "[language.tp0 r1]", "[language.tp1 r2]"]

# Each rank goes on until all have been warned, and then ends in its own way.
GOES_ON = """
import sys, time, mimo_role
ctx = mimo_role.current()
assert ctx.seconds_left() is None
print("up", flush=True)
while (left := ctx.seconds_left()) is None:
    time.sleep(0.01)
print(mimo_role.notice() and mimo_role.notice().signal.name, 10 < left <= 50, flush=True)
if ctx.rank == 2 and len(sys.argv) > 4:
    time.sleep(float(sys.argv[4]))  # saves
sys.exit(int(sys.argv[1 + ctx.rank]))
"""


def start(job, *words):
    process = job.start(GOES_ON, "runtime.warning_s=50", "runtime.grace_s=40", *words)
    assert sorted(process.stdout.readline() for _ in LABELS) == sorted(f"{label} up\n" for label in LABELS)
    return process


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_ranks_that_are_warned_can_ask_to_be_requeued(job, number, start_method):
    process = start(job, f"runtime.start_method={start_method}", "--", "75", "0", "75")
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert without_waiting(errors) == "mimo-launch: the ranks asked to be requeued (exit code 75)\n"
    assert [lines_of(output, label) for label in LABELS] == [[f"{number.name} True"]] * 3


def test_a_rank_that_still_saves_is_waited_for(job):
    process = start(job, "runtime.grace_s=1.5", "--", "75", "75", "75", "4")
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "mimo-launch: the ranks asked to be requeued (exit code 75)\n")


def test_a_request_for_a_requeue_does_not_restart_the_ranks_here(job):
    process = start(job, "runtime.max_restarts=3", "--", "75", "75", "75")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert [path.name for path in (job.folder / "runs" / "small" / "logs").iterdir()] == ["attempt0"]


def test_a_rank_that_fails_after_the_warning_has_failed(job):
    process = start(job, "--", "75", "9", "75")
    process.send_signal(signal.SIGUSR1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 9
    assert "rank 1 (language.tp0) failed first: exit code 9" in errors


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
def test_a_warning_while_the_ranks_start_does_not_end_them(job, start_method):
    process = job.start("print('ran')", "--verbose", f"runtime.start_method={start_method}")
    said = iter(process.stderr.readline, "")
    assert any("attempt 0: started 3 ranks" in line for line in said)
    process.send_signal(signal.SIGUSR1)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert [lines_of(output, label) for label in LABELS] == [["ran"]] * 3


def test_a_warning_does_not_end_a_command(job):
    job.config = job.config.replace(
        "script: script.py", 'command: [bash, -c, "echo up; while [ ! -e go ]; do sleep 0.05; done; echo went on"]'
    )
    process = job.start("")
    assert [process.stdout.readline().split()[-1] for _ in LABELS] == ["up"] * 3
    process.send_signal(signal.SIGUSR1)
    (job.folder / "go").touch()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.count("went on") == 3


LISTENS_LATE = """
import pathlib, sys, time, mimo_role
ctx = mimo_role.current()
print("up", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.01)
print([ctx.seconds_left() is None for _ in range(2)])
"""


def test_a_warning_before_the_script_calls_seconds_left_is_not_lost(job):
    process = job.start(LISTENS_LATE, "runtime.warning_s=50")
    assert sorted(process.stdout.readline() for _ in LABELS) == sorted(f"{label} up\n" for label in LABELS)
    process.send_signal(signal.SIGUSR1)
    while not list(Path("/dev/shm").glob(f"mimo-*-{process.pid}-*/notice")):
        os.sched_yield()
    (job.folder / "go").touch()
    output, _ = process.communicate(timeout=60)
    assert [lines_of(output, label) for label in LABELS] == [["[True, False]"]] * 3
    assert not list(Path("/dev/shm").glob(f"mimo-*-{process.pid}-*"))
