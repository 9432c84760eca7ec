"""What an import leaves behind that does not fit a fork."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ranks

EACH = """
import json, os, sys
import numpy, torch
from launcher.worker import fork_hazards

def found_by(code):
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        find = fork_hazards.watch()
        exec(code, {})
        os.write(writer, (find() or "").encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text

print(json.dumps({code: found_by(code) for code in json.loads(sys.argv[1])}))
"""

THREAD = "import threading\nevent = threading.Event()\nthread = threading.Thread(target=event.wait, name='mine', daemon=True)\n"
JOINED = "[thread.start() for thread in (*threads,)]\n[event.set(), *[thread.join() for thread in threads]]"
CASES = {
    f"{THREAD}thread.start()": "started 1 thread (mine), which a fork would lose",
    f"{THREAD}threads = [thread]\n{JOINED}": "",
    "import ctypes\nc = ctypes.CDLL(None)\nc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, c.pause, None)": (
        "started 1 thread ("
    ),
    "import subprocess\nprocess = subprocess.Popen(['sleep', '2'])": "started process",
    "import subprocess\nsubprocess.run(['true'])": "",
    "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)": "changed what SIGTERM does",
    "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})": "changed what SIGUSR2 does",
    "import faulthandler\nfaulthandler.enable()": "SIGSEGV",
    "file = open('/etc/passwd')\nimport builtins\nbuiltins.kept = file": "left /etc/passwd (descriptor",
    "open('/etc/passwd').close()": "",
    "import socket, builtins\nbuiltins.kept = socket.socket()": "left socket:",
    "import mmap, builtins\nbuiltins.kept = mmap.mmap(-1, 4096)": "for writing, which all ranks would share",
    "import os\nos.chdir('/')": "changed the current folder to /",
    "import sys\nsys.argv = ['other']": "changed sys.argv",
    "import torch\ntorch.cuda.is_initialized = lambda: True": "initialized CUDA, which a fork cannot use",
    "import torch.distributed as dist\ndist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)": (
        "initialized torch.distributed, which a fork cannot use"
    ),
    "import torch\ntorch.manual_seed(1)": "seeded torch",
    "import random\nrandom.seed(1)": "seeded random",
    "import numpy\nnumpy.random.seed(1)": "seeded numpy.random",
    "import random, numpy, torch\nrandom.random(), numpy.random.rand(), torch.rand(())": "",
    "import json, decimal, numpy.linalg, tempfile\ntempfile.mkdtemp()": "",
}


@pytest.fixture(scope="module")
def found():
    command = [sys.executable, "-W", "ignore", "-c", EACH, json.dumps(list(CASES))]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=90, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("code", "hazard"), CASES.items())
def test_what_a_fork_would_lose_share_or_change_is_described(found, code, hazard):
    assert hazard in found[code] if hazard else not found[code]


POOL = """
import os, sys, torch
from launcher.worker import fork_hazards
find, before = fork_hazards.watch(), len(os.listdir("/proc/self/task"))
import scipy.linalg
started = len(os.listdir("/proc/self/task")) - before
print(started > 0, find())
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="OpenBLAS has no threads")
def test_threads_that_their_library_ends_before_a_fork_are_none_to_be_lost():
    pytest.importorskip("scipy")
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", POOL]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "None"]
