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


def ignores_sigterm(pid):
    (mask,) = (line.split()[1] for line in Path("/proc", pid, "status").read_text().splitlines() if line.startswith("SigIgn"))
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)
