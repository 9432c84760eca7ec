"""Faults of one node of three, each with one rank: vision on node 0, a language model of two on the others."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.faults.harness import IS_SPAWNED_RANK, PRELUDE, mimo_launch, parent_of
from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

CONFIG = """\
name: fault
layout: non_colocated
modules: {vision: {}, language: {tp: 2}}
pools: {all: {nodes: 3, procs_per_node: 1}}
entry: {script: script.py}
run_dir: run
runtime: {grace_s: 1, timeout_s: 40}
"""
ON_NODE_2 = "rank 2 (language.tp1)"
STEPS = PRELUDE + "import mimo_role\nmimo_role.current().step(3)\n"
BOUND_S = 60.0

TORCH = """
import importlib.machinery, sys
class Later:
    def find_spec(self, name, path=None, target=None):
        if name != "torch.version":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            module.__version__ = "2.12.0"
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Later())
"""
PATCH = "import platform\nplatform.python_version = lambda: f'{sys.version_info[0]}.{sys.version_info[1]}.99'\nimport sys\n"
OURS = "import mimo_role\nmimo_role.__version__ = '9.9.9'\n"
NEVER = f"import sys, time\nif {IS_SPAWNED_RANK}:\n    time.sleep(1000)\n"


def write(agents, script):
    agents.write(script)
    (agents.folder / "job.yaml").write_text(CONFIG, encoding="utf-8")


def start_with(agents, sitecustomize, *words):
    """Start all; on node 1, every Python begins with a file of its own."""
    started = []
    (agents.folder / "other").mkdir()
    (agents.folder / "other" / "sitecustomize.py").write_text(sitecustomize)
    for node in range(3):
        agents.environ = {"PYTHONPATH": f"{agents.folder}/other:{ROOT}"} if node == 1 else {}
        started.append(agents.start(node, *words))
    return started


def pid_on(agents, rank):
    agents.wait_for_files("pid0.[0-9]", 3)
    return int((agents.folder / f"pid0.{rank}").read_text())


def check(agents, found, *, code, outcome, names, says=(), node_0_says=None):
    """Node 0 tells all of it, the others leave with the same code, nothing is left, and the run directory can be read."""
    first = found[0]
    assert [done.code for done in found] == [code] * 3, [done.err for done in found]
    assert not agents.left()
    for text in says:
        assert text in first.err, first.err
    run = agents.folder / "run"
    report = json.loads((run / "report.json").read_text())
    assert (report["outcome"], report["exit_code"]) == (outcome, code)
    if code:
        assert names in report["headline"]
        assert f"mimo-launch: {report['headline']}\n" in first.err
        for done in found[1:]:
            assert names in done.said, done.err
    assert not list(Path("/dev/shm").glob(f"mimo-{(run / 'run_id').read_text()}-*"))
    status = mimo_launch("status", str(run))
    assert all(name in status for name in ("over", "alpha", "beta", "gamma", "vision", "language"))
    mimo_launch("logs", str(run))


def test_node_0_prints_the_whole_report_of_a_rank_that_raises_on_node_2(agents):
    write(agents, PRELUDE + "def inner():\n    raise RuntimeError('no good')\nif bad:\n    inner()\ntalk()\n")
    found = agents.finish([agents.start(node) for node in range(3)], BOUND_S)
    says = (f"{ON_NODE_2} failed first: RuntimeError: no good", "  on gamma, at ", " in inner\n", "  output: ")
    check(agents, found, code=1, outcome="failed", names=ON_NODE_2, says=says)
    report = json.loads((agents.folder / "run" / "report.json").read_text())
    assert report["first"]["host"] == "gamma"
    assert len(report["ranks"]) == 3
    assert "[language.tp1 r2] rank 2 is up\n" in mimo_launch("logs", str(agents.folder / "run"))


@pytest.mark.parametrize(
    ("statement", "code", "ending"),
    [
        pytest.param("sys.exit(7)", 7, "exit code 7", id="exit code 7"),
        pytest.param("import ctypes; ctypes.string_at(0)", 1, "killed by SIGSEGV", id="a segmentation fault"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", 1, "killed by SIGKILL", id="SIGKILL"),
    ],
)
def test_a_rank_that_ends_on_node_2(agents, statement, code, ending):
    write(agents, PRELUDE + f"if bad:\n    {statement}\ntalk()\n")
    found = agents.finish([agents.start(node) for node in range(3)], BOUND_S)
    check(agents, found, code=code, outcome="failed", names=ON_NODE_2, says=(f"{ON_NODE_2} failed first: {ending}", "on gamma"))


def test_a_rank_that_is_stopped_on_node_1(agents):
    write(agents, STEPS + "talk()\n")
    started = [agents.start(node, "runtime.stall_timeout_s=2") for node in range(3)]
    os.kill(pid_on(agents, 1), signal.SIGSTOP)
    found = agents.finish(started, BOUND_S)
    says = ("rank 1 (language.tp0), process ", "on beta, is stopped; kill -CONT ", "not entered by rank 1 (language.tp0)")
    check(agents, found, code=124, outcome="stalled", names="rank 1 (language.tp0) held up the others", says=says)


def test_a_collective_that_the_rank_of_node_2_does_not_enter(agents):
    write(agents, STEPS + "if bad:\n    time.sleep(1000)\ntalk()\n")
    found = agents.finish([agents.start(node, "runtime.stall_timeout_s=2") for node in range(3)], BOUND_S)
    says = (f"rank 0 (vision), rank 1 (language.tp0) inside; not entered by {ON_NODE_2}", "on gamma, is at", "script.py:")
    check(agents, found, code=124, outcome="stalled", names=f"{ON_NODE_2} held up the others", says=says)


JOINS_LATE = """
import datetime
import torch.distributed as dist
import mimo_role
dist.init_process_group("gloo", timeout=datetime.timedelta(hours=1))
dist.barrier()
if bad:
    time.sleep(1000)
mimo_role.init()
talk()
"""


def test_a_rank_of_node_2_that_does_not_join_where_joining_has_no_limit_of_its_own(agents):
    write(agents, PRELUDE + JOINS_LATE)
    words = ("runtime.timeout_s=2", "runtime.join=script")
    found = agents.finish([agents.start(node, *words) for node in range(3)], BOUND_S)
    says = (f"joining: rank 0 (vision), rank 1 (language.tp0); not joining: {ON_NODE_2}", "on gamma, is at", "script.py:")
    check(agents, found, code=124, outcome="stalled", names=f"{ON_NODE_2} held up the others", says=says)


def test_a_rank_on_node_1_that_never_arrives(agents):
    write(agents, PRELUDE)
    found = agents.finish(start_with(agents, NEVER, "runtime.start_method=spawn", "runtime.timeout_s=10"), BOUND_S)
    says = ("did not come to join within 10 s, runtime.timeout_s", "of 2 are here")
    check(agents, found, code=124, outcome="stalled", names="r1 language.tp0 on node1 (beta)", says=says)


def test_another_config_on_node_1(agents):
    write(agents, PRELUDE)
    words = ((), ("modules.language.tp=1", "modules.language.dp=2"), ())
    found = agents.finish([agents.start(node, *words[node]) for node in range(3)], BOUND_S)
    assert [done.code for done in found] == [2, 2, 2]
    assert all("node1 (beta) holds another plan" in done.said for done in found)
    assert not agents.left()
    assert not list(agents.folder.glob("pid*"))


def start_from_elsewhere(agents, script, *words):
    """Node 1 has the same config, and another script of that name, in another folder."""
    other = agents.folder / "elsewhere"
    other.mkdir()
    (other / "job.yaml").write_text(CONFIG)
    (other / "script.py").write_text(script)
    launch = ["env", "-C", str(other), sys.executable, "-m", "launcher", "run", "job.yaml", "--log-fold", "off"]
    place = ["--node-rank", "1", "--rdzv-endpoint", agents.endpoint]
    return [agents.start(0, *words), agents.popen("beta", [*launch, *place, *words]), agents.start(2, *words)]


def test_another_script_on_node_1(agents):
    write(agents, PRELUDE)
    found = agents.finish(start_from_elsewhere(agents, PRELUDE + "# another\n"), BOUND_S)
    says = ("script", "beta", "ends the job", "--no-preflight")
    check(agents, found, code=2, outcome="refused", names="the ranks do not fit together", says=says)
    assert not list(agents.folder.rglob("pid*"))


def test_another_script_on_node_1_runs_without_preflight(agents):
    write(agents, "print('this one')\n")
    found = agents.finish(start_from_elsewhere(agents, "print('the other')\n", "--no-preflight"), BOUND_S)
    check(agents, found, code=0, outcome="done", names="")
    assert "the other" in found[1].out
    assert "this one" in found[2].out


@pytest.mark.parametrize(
    ("sitecustomize", "says"),
    [
        pytest.param(TORCH, ("torch", "2.12.0", "beta", "ends the job"), id="another torch"),
        pytest.param(OURS, ("mimo-launch", "9.9.9", "beta", "ends the job"), id="another mimo-launch"),
    ],
)
def test_another_version_on_node_1(agents, sitecustomize, says):
    write(agents, PRELUDE)
    found = agents.finish(start_with(agents, sitecustomize), BOUND_S)
    check(agents, found, code=2, outcome="refused", names="the ranks do not fit together", says=says)
    assert not list(agents.folder.glob("pid*"))


def test_another_patch_of_python_on_node_1_is_a_warning(agents):
    write(agents, PRELUDE)
    found = agents.finish(start_with(agents, PATCH), BOUND_S)
    says = ("mimo-launch: warning: the ranks differ", "Python patch", ".99", "beta")
    check(agents, found, code=0, outcome="done", names="", says=says)


def test_sigkill_to_the_mimo_launch_of_node_1(agents):
    agents.lost_after_s = 3.0
    write(agents, STEPS + "talk()\n")
    started = [agents.start(node) for node in range(3)]
    pid_on(agents, 1)
    started[1].kill()
    found = agents.finish(started, BOUND_S)
    assert found[1].code == -signal.SIGKILL
    assert found[0].code == found[2].code == 1
    # Either its rank's end is noticed first, at those that talk to it, or that nobody hears of it any more.
    assert any(text in found[0].err for text in ("node1 (beta)", "rank ")), found[0].err
    assert json.loads((agents.folder / "run" / "report.json").read_text())["exit_code"] == 1


def test_sigkill_to_the_fork_server_of_node_1(agents):
    write(agents, STEPS + "talk()\n")
    started = [agents.start(node) for node in range(3)]
    server = parent_of(pid_on(agents, 1))
    os.kill(server, signal.SIGKILL)
    found = agents.finish(started, BOUND_S)
    check(agents, found, code=1, outcome="failed", names="the fork server")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_mimo_launch_of_node_1(agents, number, code):
    write(agents, STEPS + "talk()\n")
    started = [agents.start(node) for node in range(3)]
    pid_on(agents, 1)
    started[1].send_signal(number)
    found = agents.finish(started, BOUND_S)
    assert [done.code for done in found] == [code] * 3
    assert all(f"ended by {number.name}" in done.said for done in found)
    assert not agents.left()
