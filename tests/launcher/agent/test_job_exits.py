"""No process of a run is left, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.host import reaper
from tests.launcher.jobs import without_waiting

pytestmark = pytest.mark.ranks

# Rank 1 has a child of its own, and one in another session whose parent has gone.
BUSY = """
import os, subprocess, time, mimo_role
if mimo_role.current().rank == 1:
    subprocess.Popen(["sleep", "1000"])
    os.system("setsid sleep 1000 &")
    print("run id", mimo_role.RankEnviron.from_environ().run_id)
print("up")
time.sleep(1000)
"""
EXTRA_PROCESSES = 2


def start(job, *overrides):
    """Start a run; return it and its id once all ranks are up."""
    process = job.start(BUSY, *overrides)
    run_id, up = None, 0
    while up < 3:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        up += line.endswith(" up\n")
        if "run id" in line:
            run_id = line.split()[-1]
    return process, run_id


def wait_until_gone(run_id, seconds=10):
    deadline = time.monotonic() + seconds
    while reaper.processes_of(run_id):
        assert time.monotonic() < deadline, reaper.processes_of(run_id)
        os.sched_yield()


@pytest.mark.parametrize("start_method", ["forkserver", "spawn"])
@pytest.mark.parametrize(
    ("number", "code", "last"),
    [
        (signal.SIGINT, 130, "mimo-launch: interrupted\n"),
        (signal.SIGTERM, 143, "mimo-launch: ended by SIGTERM\n"),
        (signal.SIGHUP, 129, "mimo-launch: ended by SIGHUP\n"),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_a_signal_to_mimo_launch_ends_everything(job, number, code, last, start_method):
    process, run_id = start(job, f"runtime.start_method={start_method}")
    assert len(reaper.processes_of(run_id)) >= 3 + EXTRA_PROCESSES
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    shown = without_waiting(errors).splitlines(keepends=True)
    assert "".join(line for line in shown if "SIGINT sent" not in line) == last  # on a busy machine
    wait_until_gone(run_id)


def test_a_rank_that_dies_before_a_groups_first_use_ends_the_others(job):
    script = """
import os, torch, torch.distributed as dist, mimo_role
context = mimo_role.current()
if context.rank == 2:
    os._exit(7)
if context.rank == 1:
    dist.all_reduce(torch.ones(()), group=context.group("language", "tp"))
"""
    done = job.run(script, timeout_s=60)
    assert done.returncode == 7
    assert "rank 2 (language.tp1) failed first: exit code 7" in done.stderr


def test_ranks_that_ignore_sigterm_are_killed_after_the_grace_time(job):
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"
    process = job.start(script, "runtime.grace_s=1")
    assert [process.stdout.readline().split()[-1] for _ in range(3)] == ["up"] * 3
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_what_a_script_leaves_running_ends_with_the_run(job):
    script = "import os; os.system('setsid sleep 1000 &'); import mimo_role; print(mimo_role.RankEnviron.from_environ().run_id)"
    done = job.run(script)
    assert done.returncode == 0
    assert reaper.processes_of(done.stdout.split()[-1]) == []


def test_the_death_of_the_fork_server_ends_the_run(job):
    process, run_id = start(job)
    (reaper_pid,) = [pid for pid in reaper.processes_of(run_id) if "reaper.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    below = [pid for pid in reaper.processes_of(run_id) if _parent_of(pid) == reaper_pid]  # orphans too
    (server,) = [pid for pid in below if "program.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(server, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    wait_until_gone(run_id)


def test_a_command_and_its_children_end_with_a_killed_mimo_launch(job):
    job.config = job.config.replace("script: script.py", 'command: [bash, -c, "echo id $MIMO_RUN_ID; sleep 1000; true"]')
    process = job.start("")
    run_id = process.stdout.readline().split()[-1]
    process.kill()
    process.communicate(timeout=30)
    wait_until_gone(run_id)


RENAMED = """
import multiprocessing, os, sys, time
import setproctitle

def note(name):
    with open(f"{name}{rank}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{name}{rank}.new", f"{name}{rank}.pid")

def help_out():
    setproctitle.setproctitle("helper " + rank)
    if os.fork():
        note("helper")
    elif os.fork() == 0:
        os.setsid()
        setproctitle.setproctitle("background")
        note("background")
    time.sleep(1000)

rank = os.environ["RANK"]
setproctitle.setproctitle("trainer " + rank)
note("rank")
multiprocessing.get_context("fork").Process(target=help_out, daemon=True).start()
while not all(os.path.exists(f"{name}{other}.pid") for name in ("helper", "background") for other in range(3)):
    time.sleep(0.01)
print("up", flush=True)
while rank == "1" and not os.path.exists("fail"):
    time.sleep(0.01)
if rank == "1":
    os._exit(3)
time.sleep(1000)
"""


@pytest.mark.parametrize("kind", ["forkserver", "spawn", "command"])
@pytest.mark.parametrize("end", ["failure", "SIGKILL"])
def test_processes_that_have_overwritten_their_name_and_environment_end_too(job, kind, end):
    pytest.importorskip("setproctitle")
    if kind == "command":
        job.config = job.config.replace("script: script.py", f"command: ['{sys.executable}', script.py]")
    start_method = "spawn" if kind == "spawn" else "forkserver"
    process = job.start(RENAMED, f"runtime={{start_method: {start_method}, join: script, grace_s: 2}}")
    assert [process.stdout.readline().split()[-1] for _ in range(3)] == ["up"] * 3
    pids = {file.stem: int(file.read_text()) for file in job.folder.glob("*.pid")}
    assert len(pids) == 3 * 3
    if end == "failure":
        (job.folder / "fail").touch()
    else:
        process.kill()
    process.communicate(timeout=30)
    assert process.returncode == (3 if end == "failure" else -signal.SIGKILL)
    deadline = time.monotonic() + 20
    while left := [name for name, pid in pids.items() if reaper.state_of(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def test_processes_of_other_runs_are_left_alone():
    environ = {name: value for name, value in os.environ.items() if name != reaper.AGENT_ID}
    sleepers = [
        subprocess.Popen([sys.executable, "-c", "input()"], env=environ | {reaper.AGENT_ID: run_id}, stdin=subprocess.PIPE)
        for run_id in ("test-run-1", "test-run-11")
    ]
    try:
        assert reaper.end_all("test-run-1", grace_s=10) == []
        assert sleepers[0].wait(timeout=10) == -signal.SIGTERM
        assert reaper.processes_of("test-run-11") == [sleepers[1].pid]
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.communicate()


def _parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
