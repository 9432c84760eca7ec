"""Directories and helper processes that are removed during a run."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from launcher.host import reaper
from tests.faults.harness import Fault, Run, check_nothing_is_left, running, suffer, words_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

WAITS = "import mimo_role\nmimo_role.current().step(1)\nwait_for('end')\n"
FAILS = WAITS + "if bad:\n    raise RuntimeError('no good')\ntalk()\n"


def remove_the_run_directory(run: Run) -> None:
    assert run.pid()
    assert run.agent_id
    shutil.rmtree(run.folder)
    run.touch("end")


def remove_the_node_directory(run: Run) -> None:
    run.pid()
    (folder,) = Path("/dev/shm").glob(f"mimo-{run.agent_id}-*")
    shutil.rmtree(folder)
    run.touch("end")


def kill_the_reaper(run: Run) -> None:
    run.pid()
    (reaper_pid,) = [pid for pid in reaper.processes_of(run.agent_id) if reaper.__file__.encode() in words_of(pid)]
    os.kill(reaper_pid, signal.SIGKILL)
    run.touch("end")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(code=0, script=WAITS, strike=remove_the_run_directory), id="and the run ends well"),
        pytest.param(
            Fault(
                layout="colocated",
                code=1,
                script=FAILS,
                says=("{culprit} failed first: RuntimeError: no good",),
                strike=remove_the_run_directory,
            ),
            id="and a rank fails, colocated",
        ),
        pytest.param(
            Fault(
                layout="command",
                code=7,
                script="wait_for('end')\nif bad:\n    sys.exit(7)\ntalk()",
                says=("{culprit} failed first: exit code 7",),
                strike=remove_the_run_directory,
            ),
            id="and a rank fails, command",
        ),
    ],
)
def test_the_run_directory_is_removed(job, fault):
    with running(job, fault) as run:
        fault.strike(run)
        run.finish()
        assert run.process.returncode == fault.code, run.err
        check_nothing_is_left(run)
        assert all(text in run.err for text in fault.told()), run.err
        assert "Traceback" not in run.err.replace("] Traceback", ""), run.err
        assert "run/report.json: No such file or directory; the report is not written" in run.err


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            Fault(code=0, outcome="done", script=WAITS, words=("runtime.stall_timeout_s=1",), strike=remove_the_node_directory),
            id="and the run ends well",
        ),
        pytest.param(
            Fault(
                layout="pipeline",
                code=1,
                script=FAILS,
                says=("{culprit} failed first: RuntimeError: no good",),
                strike=remove_the_node_directory,
            ),
            id="and a rank fails",
        ),
    ],
)
def test_the_node_directory_is_removed(job, fault):
    suffer(job, fault)


def test_the_reaper_is_killed(job):
    script = "os.system('setsid sleep 1000 &')\n" + FAILS
    suffer(job, Fault(code=1, script=script, says=("{culprit} failed first: RuntimeError: no good",), strike=kill_the_reaper))
