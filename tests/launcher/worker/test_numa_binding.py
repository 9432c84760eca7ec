"""Binding ranks to the CPU cores that torch chooses for their GPUs. The GPUs and their places in the machine are made up."""

import json
import os
import re
import signal
from textwrap import dedent

import pytest
from torch.distributed.run import get_args_parser

from launcher import cli
from launcher.config.schema import NumaBinding
from launcher.errors import LaunchError
from launcher.worker import numa_binding
from tests.launcher.jobs import Job, lines_of

CORES = sorted(os.sched_getaffinity(0))
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two CPU cores")

MACHINE = f"""
import builtins, io, os, types
import torch
import torch.numa.binding

FILES = {{
    "/sys/devices/system/node/node0/cpulist": "{CORES[0]}",
    "/sys/devices/system/node/node1/cpulist": "{",".join(map(str, CORES[1:]))}",
    "/sys/bus/pci/devices/0000:a0:00.0/numa_node": "1",
    "/sys/bus/pci/devices/0000:a1:00.0/numa_node": "0",
}}
asked = []

def open_made_up(path):
    return io.StringIO(FILES[path]) if path in FILES else builtins.open(path)

def properties(index):
    asked.append(index)
    return types.SimpleNamespace(pci_domain_id=0, pci_bus_id=0xA0 + index, pci_device_id=0)

torch.numa.binding.open = open_made_up
torch.cuda.get_device_properties = properties
torch.cuda.device_count = torch.accelerator.device_count = lambda: 2
torch.accelerator.is_available = lambda: True
torch.accelerator.current_accelerator = lambda: torch.device("cuda")
"""
"""Two GPUs: the first near all cores but one, the second near that one."""

PRINTS = """
import json, os, subprocess, sys
child = subprocess.check_output([sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"], text=True)
made_up = sys.modules.get("sitecustomize")
print(json.dumps([sorted(os.sched_getaffinity(0)), json.loads(child), made_up.asked if hasattr(made_up, "asked") else []]))
"""

CONFIG = """\
name: bound
layout: non_colocated
modules: {vision: {}, language: {}}
entry: {script: script.py}
runtime: {backend: gloo, numa_binding: node}
"""


@pytest.fixture
def job(tmp_path):
    """A job on a machine with two GPUs."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif any(word.endswith('program.py') for word in sys.orig_argv):\n"
        + "".join(f"    {line}\n" for line in dedent(MACHINE).splitlines())
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "numactl").touch(0o755)
    job = Job(tmp_path, config=CONFIG)
    job.environ = {
        "PYTHONPATH": f"{tmp_path}:{job.whole_environ()['PYTHONPATH']}",
        "PATH": f"{programs}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    return job


@needs_two_cores
@pytest.mark.ranks
@pytest.mark.parametrize(
    "words",
    [
        pytest.param((), id="forked"),
        pytest.param(("runtime.start_method=spawn",), id="spawned"),
        pytest.param(("entry.script=null", "entry.command=[python3, script.py]"), id="command"),
    ],
)
def test_ranks_and_what_they_start_run_on_the_cores_near_their_gpus(job, words):
    done = job.run(PRINTS, *words)
    assert done.returncode == 0, done.stderr
    (first,), (second,) = (lines_of(done.stdout, f"[{name}]") for name in ("vision r0", "language r1"))
    assert json.loads(first)[:2] == [CORES[1:], CORES[1:]]
    assert json.loads(second)[:2] == [CORES[:1], CORES[:1]]


@needs_two_cores
@pytest.mark.ranks
def test_the_process_of_the_script_has_not_asked_for_gpus(job):
    """That would initialize CUDA, before the script can choose its devices."""
    done = job.run(PRINTS)
    assert [json.loads(line)[2] for line in lines_of(done.stdout, "[vision r0]")] == [[]]


@pytest.mark.ranks
def test_a_rank_that_cannot_be_bound_fails_and_names_the_setting(job):
    (job.folder / "bin" / "numactl").unlink()
    done = job.run(PRINTS)
    assert done.returncode == 1
    # Of whichever rank comes to it first.
    expected = r"runtime.numa_binding=node: GPU \d: RuntimeError: numactl CLI is required for NUMA binding; leave it out to run"
    assert re.search(expected, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("0", 1)])
def test_a_machine_without_a_gpu_for_each_rank_is_refused(tmp_path, monkeypatch, capsys, visible, gpus):
    Job(tmp_path, config=CONFIG).write("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cli.main(["run", "job.yaml"]) == 2
    found = capsys.readouterr().err
    assert (
        f"runtime.numa_binding=node binds each rank to cores near a GPU of its own, but this machine has {gpus} GPUs" in found
    )


def test_the_modes_are_those_of_torchrun():
    (action,) = (each for each in get_args_parser()._actions if "--numa-binding" in each.option_strings)
    assert [mode.value for mode in NumaBinding] == list(action.choices)


def test_a_torch_without_bindings_is_named(monkeypatch):
    monkeypatch.setattr(numa_binding, "_APPLY", "_gone")
    with pytest.raises(LaunchError, match=r"runtime.numa_binding=socket: GPU 3: torch \S+ cannot bind processes; leave it out"):
        numa_binding.bind(NumaBinding.SOCKET, 3)


def test_a_crash_of_the_process_that_asks_torch_is_an_error(monkeypatch):
    monkeypatch.setattr(numa_binding, "_choose", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LaunchError, match=r"the process that asks torch for the cores has crashed \(exit code -9\)"):
        numa_binding.bind(NumaBinding.NODE, 0)
