"""Reports of three agents over a real store."""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from launcher.coordination.node_identity import Endpoint
from launcher.coordination.reports import _KEPT, LocalReports, Reports, report_interval_s
from launcher.coordination.store import connect, serve

pytestmark = pytest.mark.timeout(60)


def free_endpoint():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return Endpoint("127.0.0.1", found.getsockname()[1])


@pytest.fixture
def three():
    """The reports of three nodes, which have opened theirs."""
    endpoint = free_endpoint()
    stores = [serve(endpoint, "node0", 3), *(connect(endpoint, "node0", 20, node=node, nodes=3) for node in (1, 2))]
    found = [Reports(store) for store in stores]
    for each in found:
        each.open()
    return found


def test_node_0_collects_what_each_node_has_sent_once_and_in_order(three):
    assert three[0].collect() == []
    for number in range(3):
        for node, reports in enumerate(three):
            reports.send([node, number])
    found = three[0].collect()
    assert [each for each in found if each[0] == 0] == [[0, 0], [0, 1], [0, 2]]
    assert [each for each in found if each[0] == 2] == [[2, 0], [2, 1], [2, 2]]
    assert len(found) == 9
    assert three[0].collect() == []
    three[1].send("more")
    assert three[0].collect() == ["more"]


def test_a_node_that_is_never_read_keeps_its_last_reports_only(three):
    for number in range(20):
        three[1].send(number)
    assert three[0].collect() == list(range(20 - _KEPT, 20))
    three[1].send(20)
    assert three[0].collect() == [20]


def test_all_send_and_node_0_collects_at_the_same_time(three):
    def send(reports):
        for number in range(60):
            reports.send(number)

    with ThreadPoolExecutor(2) as threads:
        sending = [threads.submit(send, reports) for reports in three[1:]]
        found = []
        while not all(each.done() for each in sending):
            found += three[0].collect()
        found += three[0].collect()
    assert len(found) <= 120
    assert found.count(59) == 2
    assert all(found.count(number) <= 2 for number in range(60))


def test_nothing_is_lost_that_one_thread_sends_while_another_collects():
    reports, count, found = Reports(serve(free_endpoint(), "node0", 1)), 50_000, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as threads:
            sending = threads.submit(lambda: [reports.send(number) for number in range(count)])
            while not sending.done():
                found += reports.collect()
    finally:
        sys.setswitchinterval(interval)
    assert [*found, *reports.collect()] == list(range(count))


def test_a_node_without_others_needs_no_store():
    reports = LocalReports()
    reports.send(1)
    reports.send(2)
    assert (reports.collect(), reports.collect()) == ([1, 2], [])


def test_many_nodes_report_less_often():
    assert (report_interval_s(1), report_interval_s(100), report_interval_s(1280)) == (1.0, 1.0, 12.8)
