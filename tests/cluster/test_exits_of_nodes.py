"""A job on several hosts ends on all of them, by itself, whatever ends it on one."""

import os
import signal
import subprocess

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

LOST_AFTER_S = 3.0
NODE_0_LOST = "node0 at {} is lost: no answer for 3 s"
NODE_1_LOST = "node1 (beta) is lost: no heartbeat for 3 s"
ALL_LOST = (
    "node1 (beta), node2 (gamma) are lost: no heartbeat for 3 s; "
    "these are all nodes but node0 (alpha), which may be cut off from the network itself"
)

# Every rank says that it is there, and never ends by itself. They do not talk, so none ends because another has.
WAITING = """
import pathlib, time, mimo_role
pathlib.Path(f"up{mimo_role.current().rank}").touch()
time.sleep(1000)
"""

# Rank 4 ends when told to. The others talk to it all the time, and fail because it has.
TALKING = """
import os, pathlib, sys, torch, torch.distributed as dist, mimo_role
pathlib.Path(f"up{mimo_role.current().rank}").touch()
while True:
    dist.all_reduce(torch.ones(()))
    if mimo_role.current().rank == 4 and pathlib.Path("fail").exists():
        os._exit(7)
"""

# The same, but rank 3, on the node of rank 4, neither talks nor heeds SIGTERM.
NEIGHBOUR_GOES_ON = """
import os, pathlib, signal, time, torch, torch.distributed as dist, mimo_role
rank = mimo_role.current().rank
talking = dist.new_group([0, 1, 2, 4, 5])
if rank == 3:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(f"up{rank}").touch()
while rank == 3:
    time.sleep(1)
while True:
    dist.all_reduce(torch.ones(()), group=talking)
    if rank == 4 and pathlib.Path("fail").exists():
        os._exit(7)
"""

# Nobody talks; rank 4 ends when told to.
FAILS_ALONE = """
import os, pathlib, time, mimo_role
rank = mimo_role.current().rank
pathlib.Path(f"up{rank}").touch()
while rank != 4 or not pathlib.Path("fail").exists():
    time.sleep(0.01)
os._exit(7)
"""

# Every rank ends well when told to.
FINISHES = """
import pathlib, time, mimo_role
pathlib.Path(f"up{mimo_role.current().rank}").touch()
while not pathlib.Path("finish").exists():
    time.sleep(0.01)
"""


@pytest.fixture
def running(agents):
    """Start a job, and return its agents once all ranks are up."""

    def start(script, *words):
        agents.write(script)
        started = agents.start_all(*words)
        agents.wait_for_files("up*", 6)
        return started

    return start


@pytest.mark.parametrize(
    "script", [pytest.param(TALKING, id="ranks that talk"), pytest.param(FAILS_ALONE, id="ranks that do not")]
)
def test_a_rank_that_fails_on_one_node_ends_all(agents, running, script):
    started = running(script)
    (agents.folder / "fail").touch()
    found = agents.finish(started, timeout_s=20)
    assert [done.code for done in found] == [7, 7, 7]
    _check_reports_of_rank_4(found)


def test_the_rank_that_failed_first_is_named_though_its_neighbour_does_not_end(agents, running):
    started = running(NEIGHBOUR_GOES_ON, "runtime.grace_s=4")
    (agents.folder / "fail").touch()
    found = agents.finish(started, timeout_s=20)
    assert [done.code for done in found] == [7, 7, 7]
    _check_reports_of_rank_4(found)


def _check_reports_of_rank_4(found):
    """Node 0 and the node with the rank print the whole report, the others one line."""
    assert found[0].said.startswith("rank 4 (language.dp1) failed first: exit code 7\n")
    assert "mimo-launch: rank 4 (language.dp1) failed first: exit code 7\n  on gamma, at " in found[0].err
    assert found[1].said == "ended: rank 4 (language.dp1) failed first: exit code 7 on node2 (gamma)"
    assert found[2].said.startswith("rank 4 (language.dp1) failed first: exit code 7\n")


def test_ctrl_c_on_one_node_ends_all(agents, running):
    started = running(WAITING)
    started[1].send_signal(signal.SIGINT)
    found = agents.finish(started, timeout_s=20)
    assert [done.code for done in found] == [130, 130, 130]
    assert [done.said for done in found] == [
        "ended: interrupted on node1 (beta)",
        "interrupted",
        "ended: interrupted on node1 (beta)",
    ]


def test_sigterm_to_node_0_ends_all(agents, running):
    started = running(WAITING)
    started[0].terminate()
    found = agents.finish(started, timeout_s=20)
    assert [done.code for done in found] == [143, 143, 143]
    assert [done.said for done in found] == ["ended by SIGTERM", *["ended: ended by SIGTERM on node0 (alpha)"] * 2]


def test_nodes_end_when_one_is_lost(agents, running):
    agents.lost_after_s = LOST_AFTER_S
    started = running(WAITING)
    started[1].kill()
    first, killed, third = agents.finish(started, timeout_s=40)
    assert (first.code, killed.code, third.code) == (1, -signal.SIGKILL, 1)
    assert first.said == third.said == "ended: node1 (beta) is lost: no heartbeat for 3 s"


def test_nodes_end_when_node_0s_agent_is_killed(agents, running):
    started = running(WAITING)
    started[0].kill()
    killed, *others = agents.finish(started, timeout_s=40)
    assert killed.code == -signal.SIGKILL
    for done in others:
        assert (done.code, done.said) == (1, f"ended: node0 at {agents.endpoint} is lost: connection closed")


def test_a_second_agent_of_a_node_does_not_disturb_the_job(agents, running):
    started = running(FINISHES)
    for _ in range(2):
        (second,) = agents.finish([agents.start(1, host="gamma")], timeout_s=20)
        assert second.code == 2
        assert second.said.startswith("two nodes have node rank 1: process ")
    (agents.folder / "finish").touch()
    assert [(done.code, done.said) for done in agents.finish(started, timeout_s=20)] == [(0, "")] * 3


def test_a_job_that_was_suspended_on_all_nodes_goes_on(agents, running):
    agents.lost_after_s = LOST_AFTER_S
    started = running(FINISHES)
    for process in started:
        process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        agents.finish(started[:1], timeout_s=LOST_AFTER_S + 2)
    for process in started:
        process.send_signal(signal.SIGCONT)
    (agents.folder / "finish").touch()
    assert [(done.code, done.said) for done in agents.finish(started, timeout_s=20)] == [(0, "")] * 3


# Those of node 1 alone are signalled, and all of them agree on it.
PRINTS_ITS_NOTICE = """
import pathlib, subprocess, sys, time, mimo_role
ctx = mimo_role.current()
child = subprocess.Popen(["sleep", "1000"])
steps = 0
while (left := ctx.seconds_left()) is None:
    time.sleep(0.01)
    steps += 1
    if steps == 10:
        pathlib.Path(f"up{ctx.rank}").touch()
notice = mimo_role.notice()
print("heard", notice and notice.signal.name, "step", steps, "in time", 0 < left <= 50, "child", child.poll(), flush=True)
child.kill()
sys.exit(int(sys.argv[1]))
"""


def test_a_warning_to_one_agent_reaches_its_ranks_and_kills_nothing(agents, running):
    started = running(PRINTS_ITS_NOTICE, "runtime.warning_s=50", "--", "0")
    started[1].send_signal(signal.SIGUSR1)
    found = agents.finish(started, timeout_s=20)
    assert [(done.code, done.said) for done in found] == [(0, "")] * 3
    heard = {rank: words for done in found for rank, words in _words_by_rank(done.out)}
    assert {rank: words[1] for rank, words in heard.items()} == {
        rank: "SIGUSR1" if rank in (1, 2) else "None" for rank in range(6)
    }
    assert len({words[3] for words in heard.values()}) == 1, heard
    assert all(words[-4:] == ["time", "True", "child", "None"] for words in heard.values())


def test_ranks_that_ask_to_be_requeued_after_sigterm_to_one_agent_give_the_job_its_exit_code(agents, running):
    started = running(PRINTS_ITS_NOTICE, "runtime.grace_s=20", "--", "75")
    started[1].terminate()
    found = agents.finish(started, timeout_s=30)
    assert [done.code for done in found] == [75, 75, 75]
    assert all("the ranks asked to be requeued" in done.said for done in found)


def _words_by_rank(out):
    return [(int(line.split("]")[0].rpartition(" r")[2]), line.split("] ")[1].split()) for line in out.splitlines()]


@pytest.mark.parametrize(
    ("host", "lost"),
    [
        ("alpha", [ALL_LOST, NODE_0_LOST, NODE_0_LOST]),
        ("beta", [NODE_1_LOST, NODE_0_LOST, NODE_1_LOST]),
    ],
)
def test_nodes_end_when_a_host_is_cut_off_from_the_network(agents, running, host, lost):
    agents.lost_after_s = LOST_AFTER_S
    started = running(WAITING)
    with agents.hosts.cut_off(host):
        found = agents.finish(started, timeout_s=100)
    assert [done.code for done in found] == [1, 1, 1]
    assert [done.said for done in found] == [f"ended: {reason.format(agents.endpoint)}" for reason in lost]


SAVES = """
import pathlib, sys, time, mimo_role
ctx = mimo_role.current()
ctx.seconds_left()
pathlib.Path(f"up{ctx.rank}").touch()
while ctx.seconds_left() is None:
    time.sleep(0.01)
if ctx.rank == 5:
    time.sleep(4)
    print("saved", flush=True)
sys.exit(mimo_role.REQUEUE_EXIT_CODE)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_rank_that_still_saves_is_waited_for_on_all_nodes(agents, number):
    agents.write(SAVES)
    started = agents.start_all(f"runtime.grace_s={1.5 if number == signal.SIGUSR1 else 20}")
    agents.wait_for_files("up*", 6)
    for process in started:
        process.send_signal(number)
    found = agents.finish(started, timeout_s=30)
    assert [done.code for done in found] == [75, 75, 75], found
    assert "[language.dp2 r5] saved\n" in found[2].out
