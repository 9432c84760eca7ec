"""Processes of this machine, as /proc shows them. tests/launcher/agent/test_job_exits.py has tests with whole jobs."""

import os
import signal
import subprocess
import sys

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
