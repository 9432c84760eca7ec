"""A run that is watched through the store of node 0."""

import socket

import pytest

pytest.importorskip("torch")
from launcher.coordination import store
from launcher.coordination.node_identity import Endpoint, endpoint_from
from launcher.errors import LaunchError
from launcher.live.view import STORE_KEY
from launcher.top import command
from launcher.top.moment import State
from launcher.top.node_source import NodeSource
from tests.launcher.live.views import live_view


class Gone:
    """The store of a node 0 that has ended."""

    def has(self, _):
        return None


@pytest.fixture
def endpoint():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", found.getsockname()[1])


def test_the_view_is_that_of_node_0(endpoint):
    node0 = store.serve(endpoint, "node0", 2)
    source = command.source_of(str(endpoint))
    assert (source.read().state, source.read().note) == (State.WAITING, "starting")
    node0.put(STORE_KEY, live_view().to_json())
    assert source.read().view == live_view()
    node0.put(STORE_KEY, live_view(step=413, is_last=True, time=1721.0).to_json())
    assert (source.read().note, source.read().view.step) == ("attempt 0 has ended", 413)


def test_once_node_0_does_not_answer_the_run_is_over(endpoint):
    node0 = store.serve(endpoint, "node0", 2)
    node0.put(STORE_KEY, live_view(time=1720.0).to_json())
    source = NodeSource(node0, lambda: 1720.0, lambda: 0.0)
    assert (source.read().state, source.read().note) == (State.RUNNING, "running")
    source._store = Gone()
    found = source.read()
    assert (found.state, found.note, found.view) == (State.OVER, "node 0 does not answer any more", live_view())


def test_a_view_that_does_not_change_is_stale(endpoint):
    node0 = store.serve(endpoint, "node0", 2)
    node0.put(STORE_KEY, live_view().to_json())
    assert NodeSource(node0, lambda: 1740.0, lambda: 0.0).read().note == "no news for 20 s"


def test_a_host_where_nobody_listens_is_named(monkeypatch, endpoint):
    monkeypatch.setattr("launcher.top.node_source._CONNECT_S", 0.5)
    with pytest.raises(LaunchError, match=f"node 0 does not answer at {endpoint} after 0.5 s"):
        command.source_of(str(endpoint))


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("node0:29500", Endpoint("node0", 29500)),
        ("[fe80::1]:29500", Endpoint("fe80::1", 29500)),
        ("runs/digits", None),
        ("4711", None),
        ("node0:", None),
        ("node0:70000", None),
    ],
)
def test_an_endpoint_is_told_from_a_run_directory(text, endpoint):
    assert endpoint_from(text) == endpoint
