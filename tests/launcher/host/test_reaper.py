"""Processes of this machine, as /proc shows them. tests/launcher/agent/test_job_exits.py has tests with whole jobs."""

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from launcher.host import reaper


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGUSR1, print); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_state_of_a_process_is_the_kernels_letter(child):
    assert reaper.state_of(os.getpid()) == "R"
    child.send_signal(signal.SIGSTOP)
    while reaper.state_of(child.pid) != "T":
        os.sched_yield()
    child.kill()
    while reaper.state_of(child.pid) != "Z":
        os.sched_yield()
    child.wait()
    assert reaper.state_of(child.pid) == ""


def test_a_signal_with_a_handler_is_caught(child):
    assert reaper.catches(child.pid, signal.SIGUSR1)
    assert not reaper.catches(child.pid, signal.SIGUSR2)


def test_the_resource_tracker_of_a_process_that_was_killed_removes_what_it_left():
    code = """
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=64)
print(resource_tracker._resource_tracker._pid, memory.name, flush=True)
input()
"""
    mark = uuid.uuid4().hex
    environ = {**os.environ, reaper.AGENT_ID: mark}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as owner:
        tracker, name = owner.stdout.readline().decode().split()
        while not ignores_sigterm(tracker):
            os.sched_yield()
        os.kill(int(tracker), signal.SIGSTOP)  # as if it did not get a core
        owner.kill()
    assert Path("/dev/shm", name).exists()
    assert reaper.end_all(mark, grace_s=60) == []
    assert not Path("/dev/shm", name).exists()


# A process with a child and a grandchild.
BELOW = """
import os, signal, sys, time
from launcher.host import reaper

reaper.adopt_orphans()
ours, theirs = os.pipe()
if (parent := os.fork()) == 0:
    if (child := os.fork()) == 0:
        time.sleep(1000)
    os.write(theirs, str(child).encode())
    time.sleep(1000)
child = int(os.read(ours, 20))
all_pids, stat = reaper._pids, reaper._stat
"""


@pytest.mark.parametrize("left_as", ["a zombie", "nothing"])
def test_a_process_whose_parent_ends_while_they_are_looked_at_is_found(left_as):
    code = f"""{BELOW}
def stat_and_end_the_parent(pid):
    fields = stat(pid)
    if pid == child and not reads:
        reads.append(pid)
        os.kill(parent, signal.SIGKILL)
        os.waitid(os.P_PID, parent, os.WEXITED | (os.WNOWAIT if {left_as == "a zombie"} else 0))
    return fields

reads = []
reaper._stat = stat_and_end_the_parent
reaper._pids = lambda: sorted(all_pids(), key=lambda pid: pid != child)  # process ids start again at the end of their range
try:
    assert reaper.processes_of("none", os.getpid()) == [child]
finally:
    os.kill(child, signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_process_that_a_listing_has_missed_is_ended():
    code = f"""{BELOW}
listings = iter([[], []])
reaper._pids = lambda: next(listings, all_pids())
signal.signal(signal.SIGCHLD, reaper._reap)
assert reaper.end_all("none", 60, os.getpid(), children_are_reaped=True) == []
assert reaper.state_of(child) == reaper.state_of(parent) == ""
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_process_whose_first_thread_has_ended_is_live():
    code = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
print(flush=True)
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # _exit(2): of this thread
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        while reaper.state_of(process.pid) != "Z":
            os.sched_yield()
        assert process.pid in reaper.processes_of("none", os.getpid())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process.pid not in reaper.processes_of("none", os.getpid())


def ignores_sigterm(pid):
    (mask,) = (line.split()[1] for line in Path("/proc", pid, "status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
