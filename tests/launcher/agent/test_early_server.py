"""The fork server that starts while the job is being planned."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import gettempdir

import pytest

from launcher.agent.early_server import EarlyServer
from launcher.host import reaper
from launcher.host.server_process import ServerJob
from mimo_role.host import environ
from tests.launcher.jobs import SMALL, Job


@pytest.fixture(autouse=True)
def no_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def environ_of_a_job(early, monkeypatch):
    """What a job of several ranks sets."""
    for name, value in {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        reaper.AGENT_ID: early.agent_id,
        environ.NODE_DIR: "/dev/shm/of-the-node",
    }.items():
        monkeypatch.setenv(name, value)


def test_a_job_of_several_ranks_takes_it(monkeypatch, tmp_path):
    with EarlyServer() as early:
        environ_of_a_job(early, monkeypatch)
        taken = early.take(preload=True)
        assert early.take(preload=True) is None
    assert reaper.processes_of(early.agent_id, taken.reaper.pid)
    (tmp_path / "node").mkdir()
    taken.assign(ServerJob(grace_s=5.0, directory=tmp_path / "node"))
    taken.end()
    assert not reaper.processes_of(early.agent_id)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    ("variables", "preload"),
    [
        ({}, False),
        ({"OMP_NUM_THREADS": "4"}, True),
        ({"PYTHONPATH": "elsewhere"}, True),
        ({"TORCH_LOGS": "+dynamo"}, True),
    ],
    ids=["a job that is not forked", "other threads", "other modules", "a variable of the config"],
)
def test_one_that_would_have_imported_torch_in_another_way_is_ended(monkeypatch, variables, preload):
    with EarlyServer() as early:
        environ_of_a_job(early, monkeypatch)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert early.take(preload=preload) is None
        assert not reaper.processes_of(early.agent_id)


def test_a_variable_that_the_job_lacks_ends_it(monkeypatch):
    with EarlyServer() as early:  # of a job of one rank, torch uses all cores
        monkeypatch.setenv(reaper.AGENT_ID, early.agent_id)
        assert early.take(preload=True) is None


def test_nothing_is_left_of_a_job_without_a_plan():
    with pytest.raises(KeyboardInterrupt), EarlyServer() as early:
        raise KeyboardInterrupt
    assert not reaper.processes_of(early.agent_id)


def test_nothing_is_left_if_mimo_launch_is_killed_while_it_plans(tmp_path):
    code = (
        "import time; from launcher.agent.early_server import EarlyServer\n"
        "with EarlyServer() as early:\n    print(early.agent_id, early._process.reaper.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as planning:
        agent_id, reaper_pid = planning.stdout.readline().split()
        end = os.pidfd_open(int(reaper_pid))
        planning.send_signal(signal.SIGKILL)
    select.select([end], [], [])
    os.close(end)
    assert not reaper.processes_of(agent_id)


def test_a_machine_without_room_for_processes_is_left_to_the_job(monkeypatch):
    def no_room(*_, **__):
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(subprocess, "Popen", no_room)
    with EarlyServer() as early:
        assert early.take(preload=True) is None


def node_directories(pid):
    return [path for parent in ("/dev/shm", gettempdir()) for path in Path(parent).glob(f"mimo-*-{pid}-*")]


@pytest.mark.ranks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_just_after_the_node_directory_has_been_made_leaves_nothing(tmp_path, number):
    job = Job(tmp_path, config=f"{SMALL}env: {{OWN: '1'}}\n")  # its early server does not fit
    with job.start("") as run:
        while not node_directories(run.pid):
            assert run.poll() is None
        run.send_signal(number)
        run.communicate(timeout=90)
        assert not node_directories(run.pid)
