"""Nodes that do not come together: every one of them ends by itself with a message."""

import itertools
import os
import re
import sys
from pathlib import Path

import pytest

from tests.cluster.agents import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
if os.geteuid() != 0:
    pytest.skip("hosts are network namespaces, which only root can make", allow_module_level=True)

NEVER_RUNS = "raise AssertionError('ranks were started')"


def codes_and_words(found):
    return [(done.code, done.said) for done in found]


@pytest.fixture(autouse=True)
def no_rank_has_started(agents):
    agents.write(NEVER_RUNS)
    yield
    assert not list(agents.folder.glob("run/logs/*/*"))


def test_a_node_with_another_config_is_named_on_all(agents):
    found = agents.finish([agents.start(0), agents.start(1, "runtime.grace_s=5"), agents.start(2)])
    for done in found:
        assert done.code == 2
        assert re.fullmatch(
            r"node1 \(beta\) holds another plan \(\w{12}\) than node0 \(alpha\) \(\w{12}\); "
            "start all nodes from the same config, overrides and arguments",
            done.said,
        )


def test_what_need_not_be_the_same_may_differ(agents):
    agents.write("")
    found = agents.finish([agents.start(0), agents.start(1, "run_dir=own"), agents.start(2, "--verbose")])
    assert [done.code for done in found] == [0, 0, 0]
    assert (agents.folder / "own" / "logs" / "attempt0" / "rank1.stdout.log").exists()
    for log in agents.folder.glob("*/logs/*/*"):
        log.unlink()


def test_two_agents_with_one_node_rank_are_both_named(agents):
    _first, _second, _ = started = [agents.start(0), agents.start(1), agents.start(1, host="gamma")]
    found = agents.finish(started)
    assert [done.code for done in found] == [2, 2, 2]
    for done in found:
        assert done.said.startswith("two nodes have node rank 1: process ")
        assert "on beta" in done.said
        assert "on gamma" in done.said


def test_a_second_node_0_on_its_host_finds_the_port_taken(agents):
    first = agents.start(0)
    ports = [Path(f"/proc/{first.pid}/net/{name}") for name in ("tcp", "tcp6")]
    wait_until(lambda: any(f":{agents.port:04X} " in path.read_text() for path in ports), "store of node 0", [first])
    (second,) = agents.finish([agents.start(0, "run_dir=own")])
    assert (second.code, second.said) == (
        2,
        f"port {agents.port} is taken on alpha; give all nodes another one with --rdzv-endpoint alpha:PORT",
    )


def test_a_node_that_never_comes_is_named(agents):
    found = agents.finish([agents.start(node, "runtime.timeout_s=6") for node in (0, 1)])
    for done in found:
        assert done.code == 2
        assert done.said.endswith("node2 did not come within 6 s (2 of 3 nodes are here)")
    assert "waiting for 1 of 3 nodes: node2" in found[0].said


def test_node_0_that_never_comes_is_named(agents):
    (done,) = agents.finish([agents.start(1, "runtime.timeout_s=3")])
    assert done.code == 2
    assert re.fullmatch(
        rf"node0 does not answer at {agents.endpoint} after 3 s \(.*Connection refused\); is mimo-launch running there with "
        r"--node-rank 0, and does a firewall let the port through\?",
        done.said,
    )


def test_waiting_for_a_host_that_is_not_there_times_out(agents):
    (done,) = agents.finish([agents.start(1, "runtime.timeout_s=3", endpoint="10.78.0.99:29500")])
    assert done.code == 2
    assert done.said.startswith("node0 does not answer at 10.78.0.99:29500 after 3 s (")


@pytest.mark.parametrize(
    ("node", "endpoint", "message"),
    [
        pytest.param(1, "nowhere:29500", r"'nowhere' cannot be resolved on beta: .*", id="unknown"),
        pytest.param(0, "nowhere:29500", r"'nowhere' cannot be resolved on alpha: .*", id="unknown on node 0"),
        pytest.param(
            0,
            "beta:29500",
            r"this is node 0, but beta \(10\.78\.0\.12\) is another machine; give all nodes the host on which node 0 runs",
            id="another node",
        ),
        pytest.param(
            1, "localhost:29500", r"localhost is 127\.0\.0\.1 on this machine, a loopback address: .*", id="localhost"
        ),
    ],
)
def test_a_host_that_cannot_be_node_0s_is_refused_at_once(agents, node, endpoint, message):
    (done,) = agents.finish([agents.start(node, endpoint=endpoint)], timeout_s=20)
    assert done.code == 2
    assert re.fullmatch(message, done.said)


def test_a_host_name_that_means_loopback_on_one_node_is_refused_there(agents):
    own = agents.folder / "hosts"
    own.write_text("127.0.0.1 localhost\n127.0.1.1 alpha\n")
    (done,) = agents.finish([agents.start(0, hosts_file=own)], timeout_s=20)
    assert done.code == 2
    assert done.said == (
        "alpha is 127.0.1.1 on this machine, a loopback address: each node would wait for itself; "
        "name the host of node 0 by an address that the others reach"
    )


LISTENER = """
import signal, socket
server = socket.create_server(("", {port}))
open("listening", "w").close()
signal.pause()
"""


def test_a_port_that_another_program_has_ends_all_nodes(agents):
    listener = agents.popen("alpha", [sys.executable, "-c", LISTENER.format(port=agents.port)])
    agents.wait_for_files("listening", 1)
    found = agents.finish([agents.start(node, "runtime.timeout_s=6") for node in range(3)], timeout_s=40)
    assert [done.code for done in found] == [2, 2, 2]
    assert found[0].said == f"port {agents.port} is taken on alpha; give all nodes another one with --rdzv-endpoint alpha:PORT"
    for done in found[1:]:
        assert done.said == (
            f"alpha:{agents.port} answers, but not as mimo-launch does: does another program have this port on node0's host?"
        )
    assert listener.poll() is None


def test_ctrl_c_while_nodes_are_waited_for_ends_those_that_are_there(agents):
    first, second = agents.start(0), agents.start(1, "--verbose")
    # Node 1 is there when node 0 says that it waits for one node only.
    waiting = itertools.takewhile(lambda line: "waiting for 1 of 3" not in line, first.stderr)
    assert list(waiting) is not None
    second.send_signal(2)
    found = agents.finish([first, second], timeout_s=30)
    assert [done.code for done in found] == [2, 130]
    assert found[0].said == "interrupted on node1 (beta)"
    assert found[1].said.endswith("interrupted")
