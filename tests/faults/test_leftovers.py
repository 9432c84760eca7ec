"""What ranks have started, or do not let go of, ends with the run."""

import pytest

from tests.faults.harness import Fault, suffer

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
FAILS = "if bad:\n    wait_for('ready.0')\n    sys.exit(7)\nPath(f'ready.{rank}').touch()\n"
EXIT_7 = ("{culprit} failed first: exit code 7",)

LOADER = """
import torch
from torch.utils.data import DataLoader, Dataset
class Numbers(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        if bad and index == 2:
            {}
        return index
for _ in DataLoader(Numbers(), num_workers=2, multiprocessing_context="fork"):
    torch.distributed.all_reduce(torch.ones(()))
talk()
"""


FAULTS = [
    pytest.param(
        Fault(layout="non_colocated", code=7, script=DEAF + FAILS + "time.sleep(1000)", says=EXIT_7),
        id="ranks that ignore SIGTERM when another fails, non_colocated",
    ),
    pytest.param(
        Fault(layout="command", code=7, script=DEAF + FAILS + "time.sleep(1000)", says=EXIT_7),
        id="ranks that ignore SIGTERM when another fails, command",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=7,
            script=FAILS + "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\ntime.sleep(1000)",
            says=EXIT_7,
        ),
        id="ranks that block SIGTERM when another fails, colocated",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=7,
            script="subprocess.Popen(['bash', '-c', 'trap \"\" TERM; echo deaf; while true; do sleep 1; done'])\n"
            + FAILS
            + "talk()",
            says=EXIT_7,
        ),
        id="a child that ignores SIGTERM",
    ),
    pytest.param(
        Fault(
            layout="pipeline",
            code=0,
            outcome="done",
            script="os.system('setsid sleep 1000 &')\nos.system('(trap \"\" TERM; setsid sleep 1000) &')",
        ),
        id="grandchildren of their own session, and the run ends well",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=7,
            script="child = subprocess.Popen(['sleep', '1000'])\nos.kill(child.pid, signal.SIGSTOP)\n" + FAILS + "talk()",
            says=EXIT_7,
        ),
        id="a child that is stopped",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=1,
            script=LOADER.format("os.kill(os.getpid(), signal.SIGKILL)"),
            says=(
                "{culprit} failed first: RuntimeError: DataLoader worker (pid",
                "script.py:",
                "hint: a data-loader worker has ",
            ),
        ),
        id="a data-loader worker that is killed",
    ),
    pytest.param(
        Fault(
            layout="colocated",
            code=1,
            script=LOADER.format("raise ValueError('a bad sample')"),
            says=("{culprit} failed first: ValueError: Caught ValueError in DataLoader worker process 0", "a bad sample"),
        ),
        id="a data-loader worker that raises",
    ),
    pytest.param(
        Fault(
            layout="pipeline",
            code=1,
            script=LOADER.format("import ctypes; ctypes.string_at(0)"),
            says=("{culprit} failed first: RuntimeError: DataLoader worker (pid", "hint: a data-loader worker has crashed"),
        ),
        id="a data-loader worker that crashes",
    ),
    pytest.param(
        Fault(
            layout="non_colocated",
            code=7,
            script="if bad:\n    if os.fork() == 0:\n        time.sleep(1000)\n    os._exit(7)\ntalk()",
            says=EXIT_7,
        ),
        id="a fork of the rank that outlives it",
    ),
    pytest.param(
        Fault(layout="colocated", code=7, script="if bad:\n    os.close(1); os.close(2)\n    sys.exit(7)\ntalk()", says=EXIT_7),
        id="descriptors of the output that the script has closed",
    ),
    pytest.param(
        Fault(layout="colocated", code=7, script="if bad:\n    sys.stdout.close()\n    sys.exit(7)\ntalk()", says=EXIT_7),
        id="output that the script has closed, and a rank fails",
    ),
    pytest.param(
        Fault(layout="colocated", code=0, outcome="done", script="sys.stdout.close()"),
        id="output that the script has closed, and the run ends well",
    ),
    pytest.param(
        Fault(layout="command", code=0, outcome="done", script="sys.stdout.close()"),
        id="output that the script has closed, command",
    ),
    pytest.param(
        Fault(
            layout="command",
            code=143,
            outcome="ended",
            names="ended by SIGTERM",
            script=DEAF + "time.sleep(1000)",
            strike=lambda run: (run.pid(), run.process.terminate()),
        ),
        id="ranks that ignore SIGTERM when mimo-launch is ended",
    ),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_stays(job, fault):
    suffer(job, fault)
