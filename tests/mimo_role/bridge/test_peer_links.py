import socket
import time
from contextlib import ExitStack
from datetime import timedelta

import pytest
import torch.distributed as dist

from mimo_role.bridge import peer_links
from mimo_role.bridge.frames import PREFIX, FrameKind
from mimo_role.bridge.peer_links import PeerLinks

WITHIN_S = 10.0


def frame(number, size=0):
    content = number.to_bytes(4, "little") + bytes(size)
    return PREFIX.pack(len(content), FrameKind.TAKEN) + content


class Rank:
    """One rank's connections, and the numbers of the frames that it has received."""

    def __init__(self, rank, store, series=0):
        self.links = PeerLinks(rank, store, address="127.0.0.1", series=series, timeout_s=WITHIN_S)
        self.got = []
        self.links.on(FrameKind.TAKEN, lambda peer, content: self.got.append((peer, int.from_bytes(content[:4], "little"))))

    def poll_until(self, done):
        """Handle frames until a condition holds; return whether it does."""
        until = time.monotonic() + WITHIN_S
        while not done() and time.monotonic() < until:
            self.links.handle(self.links.ready(0.05))
        return done()


@pytest.fixture(params=["within a host", "between hosts"])
def ranks(request, monkeypatch):
    """Three ranks of a world; between hosts they use TCP."""
    with ExitStack() as stack:
        if request.param == "between hosts":
            hosts = iter(f"host{number}/net" for number in range(1000))
            monkeypatch.setattr(peer_links, "_host_id", lambda: next(hosts))
        store = dist.HashStore()
        store.set_timeout(timedelta(seconds=WITHIN_S))
        made = [Rank(rank, store) for rank in range(3)]
        for rank in made:
            stack.callback(rank.links.close)
        yield made


def test_frames_of_each_peer_arrive_in_order(ranks):
    first, second, third = ranks
    for number in range(200):
        first.links.send(2, frame(number, size=number * 20))
        second.links.send(2, frame(number))
    assert third.poll_until(lambda: len(third.got) == 400)
    for peer in (0, 1):
        assert [number for sender, number in third.got if sender == peer] == list(range(200))
    assert set(third.links.peers()) == {0, 1}


def test_frames_that_are_not_read_at_once_arrive_later(ranks):
    first, second, _ = ranks
    for number in range(5000):
        first.links.send(1, frame(number, size=300))  # a send that waited for its receiver would not return
    assert second.got == []
    assert second.poll_until(lambda: len(second.got) == 5000)
    assert [number for _, number in second.got] == list(range(5000))


def test_a_frame_longer_than_one_read_arrives_whole(ranks):
    first, second, _ = ranks
    for number in range(3):
        first.links.send(1, frame(number, size=1_000_000))
    assert second.poll_until(lambda: len(second.got) == 3)


def test_ranks_send_each_other_frames_both_ways(ranks):
    first, second, _ = ranks
    first.links.send(1, frame(7))
    assert second.poll_until(lambda: second.got == [(0, 7)])
    second.links.send(0, frame(8))
    assert first.poll_until(lambda: first.got == [(1, 8)])


def test_a_connection_without_the_secret_is_closed(ranks):
    first, second, _ = ranks
    port = second.links._listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(0.05)
        stranger.sendall(bytes(range(20)) + frame(1))
        first.links.send(1, frame(2))

        def is_turned_away():
            try:
                return stranger.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionResetError:
                return True

        assert second.poll_until(is_turned_away)
    assert second.poll_until(lambda: second.got == [(0, 2)])
    assert second.links.lost == set()


def test_a_connection_with_an_incomplete_greeting_is_not_a_peer(ranks):
    first, second, _ = ranks
    port = second.links._listener.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(b"GET /")
        first.links.send(1, frame(3))
        assert second.poll_until(lambda: second.got == [(0, 3)])
    second.links.handle(second.links.ready(0.1))
    assert set(second.links.peers()) == {0}
    assert second.links.lost == set()


def test_a_peer_that_has_closed_is_lost_after_its_last_frame(ranks):
    first, second, _ = ranks
    first.links.send(1, frame(1))
    first.links.send(1, frame(2))
    first.links.close()
    assert second.poll_until(lambda: second.links.lost == {0})
    assert second.got == [(0, 1), (0, 2)]


def test_frames_of_a_peer_that_refuses_connections_are_handled_first(ranks):
    first, second, _ = ranks
    first.links.send(1, frame(1))
    first.links.close()
    second.links.send(0, frame(2))
    assert second.poll_until(lambda: second.links.lost == {0})
    assert second.got == [(0, 1)]


def test_frames_to_a_peer_that_has_closed_are_dropped(ranks):
    first, second, third = ranks
    first.links.send(1, frame(1))
    assert second.poll_until(lambda: len(second.got) == 1)
    second.links.close()
    for number in range(3000):
        first.links.send(1, frame(number, size=300))
        third.links.send(1, frame(number))
    assert third.poll_until(lambda: third.links.lost == {1})


def test_closed_connections_have_nothing_to_read(ranks):
    first, *_ = ranks
    first.links.close()
    assert first.links.ready(0.0) == []
