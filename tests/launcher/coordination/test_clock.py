"""How far the clocks of two nodes are apart: the arithmetic, and messages over a real store."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import TCPStore

from launcher.coordination import clock
from launcher.coordination.clock import ClockServer, measure
from launcher.coordination.clock_offset import ClockOffset, Exchange

DELAYS = st.tuples(st.integers(0, 10**7), st.integers(0, 10**6), st.integers(0, 10**7))


@given(st.integers(-(10**12), 10**12), st.lists(DELAYS, min_size=1, max_size=10))
def test_the_true_offset_is_within_the_error_whatever_the_delays(offset_ns, delays):
    now_ns, exchanges = 10**9, []
    for there_ns, answering_ns, back_ns in delays:
        received_ns = now_ns + there_ns + offset_ns
        arrived_ns = now_ns + there_ns + answering_ns + back_ns
        exchanges.append(Exchange(now_ns, received_ns, received_ns + answering_ns, arrived_ns))
        now_ns = arrived_ns + 1
    found = ClockOffset.of(exchanges)
    assert abs(found.offset_ns - offset_ns) <= found.error_ns
    # No worse than the quickest exchange alone.
    assert found.error_ns <= min(there + back for there, _, back in delays) // 2 + 1


def test_exchanges_that_contradict_each_other_give_that_of_the_quickest():
    found = ClockOffset.of([Exchange(0, 1000, 1000, 100), Exchange(200, 5000, 5000, 210)])
    assert (found.offset_ns, found.error_ns) == (4795, 5)


def test_the_error_grows_with_the_time_since_the_measurement():
    offset = ClockOffset(offset_ns=5, error_ns=1000, measured_ns=10**9)
    assert [offset.error_at(at_ns) for at_ns in (10**9, 11 * 10**9, 0)] == [1000, 5_001_000, 501_000]


@pytest.fixture
def store():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


@pytest.mark.timeout(60)
def test_three_nodes_with_other_clocks_agree_with_node_0(store):
    server = ClockServer(store)
    server.start()
    true = {node: node * 10**15 + 12_345 for node in (1, 2, 3)}
    with ThreadPoolExecutor(3) as threads:
        calls = {node: threads.submit(measure, store, lambda node=node: time.monotonic_ns() - true[node]) for node in true}
        found = {node: call.result() for node, call in calls.items()}
    server.stop()
    for node, offset in found.items():
        assert abs(offset.offset_ns - true[node]) <= offset.error_ns
        assert 0 < offset.error_ns < 10**9
    assert not server._thread.is_alive()


@pytest.mark.timeout(60)
def test_a_question_that_was_numbered_and_never_asked_is_skipped(store):
    server = ClockServer(store)
    server.start()
    store.add("clock/count", 1)  # an agent that died then
    assert measure(store) is not None
    store.add("clock/count", 1)
    server.stop()
    assert not server._thread.is_alive()


@pytest.mark.timeout(60)
def test_without_an_answer_nothing_is_known(store, monkeypatch):
    monkeypatch.setattr(clock, "_TIMEOUT_S", 0.3)
    assert measure(store) is None
