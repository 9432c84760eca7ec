"""What others do to a run's processes: ranks, mimo-launch itself, the fork server."""

import os
import signal
import time
from signal import Signals

import pytest

from tests.faults.harness import Fault, Run, suffer

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

FORK_SERVER = "the fork server, from which the ranks are forked, was killed or stopped"

# The ranks go on until they are told to end; after a restart they end by themselves.
STEPS_ON = """
import mimo_role
while not os.path.exists("end"):
    mimo_role.current().step()
    time.sleep(0.01)
"""
ENDS_WHEN_RESTARTED = "if attempt == 0:\n    talk()\n"


def signal_to_a_rank(number: Signals):
    def strike(run: Run) -> None:
        os.kill(run.pid(), number)

    return strike


def signal_to_mimo_launch(number: Signals):
    def strike(run: Run) -> None:
        run.pid()
        run.process.send_signal(number)

    return strike


def signal_to_the_fork_server(number: Signals):
    def strike(run: Run) -> None:
        run.pid()
        os.kill(run.fork_server(), number)

    return strike


def stop_mimo_launch_for_a_while(run: Run) -> None:
    run.pid()
    run.process.send_signal(signal.SIGSTOP)
    until = time.monotonic() + 2.5
    # The ranks make progress meanwhile, and nobody sees it; then they all wait until mimo-launch goes on.
    run.wait_until(lambda: time.monotonic() > until, "the end of a pause")
    run.process.send_signal(signal.SIGCONT)
    run.touch("end")


def stop_the_fork_server_and_fail_a_rank(run: Run) -> None:
    run.pid()
    os.kill(run.fork_server(), signal.SIGSTOP)
    run.touch("fail")


def stop_the_fork_server_for_a_moment(run: Run) -> None:
    server = (run.pid(), run.fork_server())[1]
    os.kill(server, signal.SIGSTOP)
    run.touch("end")
    until = time.monotonic() + 1
    run.wait_until(lambda: time.monotonic() > until, "the end of a pause")
    os.kill(server, signal.SIGCONT)


RANKS = [
    pytest.param(
        Fault(
            layout=layout, code=1, says=(f"{{culprit}} failed first: killed by {number.name}",), strike=signal_to_a_rank(number)
        ),
        id=f"{number.name} to a rank, {layout}",
    )
    for number, layout in [
        (signal.SIGKILL, "non_colocated"),
        (signal.SIGKILL, "colocated"),
        (signal.SIGKILL, "spawn"),
        (signal.SIGKILL, "command"),
        (signal.SIGTERM, "non_colocated"),
        (signal.SIGTERM, "command"),
        (signal.SIGXCPU, "colocated"),
    ]
]

MIMO_LAUNCH = (
    [
        pytest.param(
            Fault(
                layout=layout,
                code=code,
                names=says,
                says=(f"mimo-launch: {says}",),
                outcome="ended",
                strike=signal_to_mimo_launch(number),
            ),
            id=f"{number.name} to mimo-launch, {layout}",
        )
        for number, layout, code, says in [
            (signal.SIGINT, "colocated", 130, "interrupted"),
            (signal.SIGTERM, "pipeline", 143, "ended by SIGTERM"),
            (signal.SIGTERM, "command", 143, "ended by SIGTERM"),
            (signal.SIGHUP, "colocated", 129, "ended by SIGHUP"),
        ]
    ]
    + [
        pytest.param(
            Fault(layout=layout, code=-9, outcome=None, strike=signal_to_mimo_launch(signal.SIGKILL)),
            id=f"SIGKILL to mimo-launch, {layout}",
        )
        for layout in ("non_colocated", "spawn", "command")
    ]
    + [
        pytest.param(
            Fault(
                code=0,
                outcome="done",
                script=STEPS_ON,
                words=("runtime.stall_timeout_s=1",),
                strike=stop_mimo_launch_for_a_while,
            ),
            id="SIGSTOP and SIGCONT to mimo-launch, non_colocated",
        ),
    ]
)

SERVER = [
    pytest.param(
        Fault(code=1, names=FORK_SERVER, says=(FORK_SERVER,), strike=signal_to_the_fork_server(signal.SIGKILL)),
        id="SIGKILL to the fork server",
    ),
    pytest.param(
        Fault(
            code=0,
            outcome="done",
            script=ENDS_WHEN_RESTARTED,
            attempts=2,
            words=("runtime.max_restarts=1",),
            says=("the fork server of the ranks has died; restarting all ranks",),
            strike=signal_to_the_fork_server(signal.SIGKILL),
        ),
        id="SIGKILL to the fork server, with a restart left",
    ),
    pytest.param(
        Fault(
            layout="colocated", code=1, names=FORK_SERVER, says=(FORK_SERVER,), strike=signal_to_the_fork_server(signal.SIGSTOP)
        ),
        id="SIGSTOP to the fork server",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=0,
            outcome="done",
            attempts=2,
            words=("runtime.max_restarts=1",),
            script="if attempt == 0:\n    wait_for('fail')\n    sys.exit(7)\n",
            strike=stop_the_fork_server_and_fail_a_rank,
        ),
        id="SIGSTOP to the fork server, and ranks fail with a restart left",
    ),
    pytest.param(
        Fault(layout="pipeline", code=0, outcome="done", script="wait_for('end')", strike=stop_the_fork_server_for_a_moment),
        id="SIGSTOP to the fork server for a moment",
    ),
]


@pytest.mark.parametrize("fault", [*RANKS, *MIMO_LAUNCH, *SERVER])
def test_a_signal_from_outside(job, fault):
    suffer(job, fault)
