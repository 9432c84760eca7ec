"""Connections between ranks for frames, beside the process groups that transfer data.

A rank listens at an address that it publishes in the world's store, and connects to a peer when it first has a frame for it. A
connection carries frames in one direction, so a sender never waits for an answer. A frame takes a few microseconds where a
message over gloo takes hundreds, and waiting for frames can be interrupted, which waiting for gloo or NCCL cannot.
"""

import hashlib
import secrets
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Protocol

from mimo_role.bridge.frames import PREFIX, FrameKind
from mimo_role.errors import BridgeError

_GREETING = struct.Struct("<16si")
"""The listener's secret, which only ranks of the world can read, and the rank that connects."""

_RECEIVED_AT_ONCE = 1 << 13
_BACKLOG = 4096


class Store(Protocol):
    """What is used of torch's stores."""

    def set(self, key: str, value: str) -> None:
        """Store a value."""

    def get(self, key: str) -> bytes:
        """Wait for a value."""


class Links(Protocol):
    """Connections to all peers."""

    rank: int
    """This process's."""
    lost: set[int]
    """Peers whose connection was closed without `FrameKind.LEAVING`: they have exited or died."""

    def on(self, kind: FrameKind, handler: Callable[[int, bytes], None]) -> None:
        """Call `handler(peer, content)` for each frame of a kind; from within `handle()` and `receive_from()`."""

    def send(self, peer: int, frame: bytes) -> None:
        """Send a frame without waiting. A frame to a peer that has exited is dropped.

        Raises:
            BridgeError: the peer's host cannot be reached.
        """

    def peers(self) -> Iterable[int]:
        """The ranks with which frames have been exchanged."""

    def ready(self, timeout_s: float) -> list[int]:
        """Wait for frames; returns the connections on which something has arrived."""

    def handle(self, ready: Iterable[int]) -> None:
        """Handle the frames that have arrived on some connections."""

    def receive_from(self, peer: int) -> None:
        """Handle the frames that have arrived from one peer."""

    def close(self) -> None:
        """Close all connections."""


class NoPeerLinks:
    """The connections of a rank without peers: in a world of one rank, or of ranks that do not exist."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.lost: set[int] = set()

    def on(self, kind: FrameKind, handler: Callable[[int, bytes], None]) -> None:
        """No frame will come."""

    def send(self, peer: int, frame: bytes) -> None:  # noqa: ARG002
        """Not called."""
        raise AssertionError(f"rank {self.rank} has no peer {peer}")

    def peers(self) -> Iterable[int]:
        """None."""
        return ()

    def ready(self, timeout_s: float) -> list[int]:
        """None."""
        assert not timeout_s, f"rank {self.rank} has no peers to wait for"
        return []

    def handle(self, ready: Iterable[int]) -> None:
        """Nothing has arrived."""

    def receive_from(self, peer: int) -> None:
        """Nothing has arrived."""

    def close(self) -> None:
        """Nothing is open."""


class PeerLinks:
    """The connections of one rank. Frames from one peer arrive in the order in which it sent them.

    It has more attributes than other classes: two listeners and two kinds of connections share one epoll.
    """

    def __init__(self, rank: int, store: Store, *, address: str, series: int, timeout_s: float) -> None:
        """Listen, and publish the address.

        Args:
            rank: this process's.
            store: shared by all ranks.
            address: of this machine, at which all others reach it.
            series: the number of this context among those of the process; the same on all ranks.
            timeout_s: for connecting.

        Raises:
            BridgeError: this machine does not have the address.
        """
        self.rank = rank
        self._store = store
        self._series = series
        self._timeout_s = timeout_s
        self._secret = secrets.token_bytes(16)
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: set[_Incoming] = set()
        self._link_of: dict[int, _Incoming] = {}
        self._handlers: dict[int, Callable[[int, bytes], None]] = {}
        self.lost: set[int] = set()
        """Peers whose connection was closed: they have exited or died, unless they have sent `FrameKind.LEAVING`."""
        self._refused: set[int] = set()
        """Peers that refuse connections; they are lost when what they have sent has been handled."""
        self._epoll = select.epoll()
        self._by_file: dict[int, Callable[[], object]] = {}
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._listener = socket.create_server((address, 0), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise BridgeError(
                f"rank {rank} cannot listen at {address}: {error}; set GLOO_SOCKET_IFNAME to an interface of this host"
            ) from error
        # Within a host, Unix sockets take half the time of TCP.
        self._local_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._local_listener.bind(_local_name(self._secret))
        self._local_listener.listen(_BACKLOG)
        for listener in (self._listener, self._local_listener):
            listener.setblocking(False)
            self._watch(listener, partial(self._accept, listener))
        port = self._listener.getsockname()[1]
        store.set(self._key(rank), f"{self._secret.hex()} {_host_id()} {port} {address}")

    def on(self, kind: FrameKind, handler: Callable[[int, bytes], None]) -> None:
        """Call `handler(peer, content)` for each frame of a kind; from within `handle()` and `receive_from()`."""
        self._handlers[kind] = handler

    def send(self, peer: int, frame: bytes) -> None:
        """Send a frame without waiting. A frame to a peer that has exited is dropped.

        Raises:
            BridgeError: the peer's host cannot be reached.
        """
        if peer in self.lost or peer in self._refused:
            return
        link = self._outgoing.get(peer)
        if link is None:
            try:
                link = self._outgoing[peer] = self._connect(peer)
            except ConnectionRefusedError:  # it has closed its listener
                self._refused.add(peer)
                return
        link.send(frame)

    def peers(self) -> Iterable[int]:
        """The ranks with which frames have been exchanged."""
        return {*self._outgoing, *(link.peer for link in self._incoming if link.peer is not None)}

    def ready(self, timeout_s: float) -> list[int]:
        """Wait for frames; returns the connections on which something has arrived."""
        try:
            return [file for file, _ in self._epoll.poll(0.0 if self._refused else timeout_s)]
        except ValueError:  # closed meanwhile
            return []

    def handle(self, ready: Iterable[int]) -> None:
        """Handle the frames that have arrived on some connections."""
        for file in ready:
            if (handle := self._by_file.get(file)) is not None:
                handle()
        while self._refused:
            peer = self._refused.pop()
            self._drain(peer)
            self.lost.add(peer)

    def receive_from(self, peer: int) -> None:
        """Handle the frames that have arrived from one peer."""
        if (link := self._link_of.get(peer)) is not None:
            self._receive(link)

    def close(self) -> None:
        """Close all connections."""
        for connection in [*(link.socket for link in self._outgoing.values()), *(link.socket for link in self._incoming)]:
            connection.close()
        self._listener.close()
        self._local_listener.close()
        self._epoll.close()
        self._by_file.clear()
        self._outgoing.clear()
        self._incoming.clear()
        self._link_of.clear()

    def _key(self, rank: int) -> str:
        return f"mimo_role/links/{self._series}/{rank}"

    def _connect(self, peer: int) -> "_Outgoing":
        secret, host, port, address = self._store.get(self._key(peer)).decode().split(" ", 3)
        try:
            if host == _host_id():
                connection = _connected(_local_name(bytes.fromhex(secret)))
            else:
                connection = socket.create_connection((address, int(port)), timeout=self._timeout_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except ConnectionRefusedError:
            raise
        except OSError as error:
            raise BridgeError(f"rank {self.rank} cannot connect to rank {peer} at {address} port {port}: {error}") from error
        connection.setblocking(False)
        link = _Outgoing(connection)
        self._by_file[connection.fileno()] = lambda: self._hung_up(peer, link)
        self._epoll.register(connection, select.EPOLLRDHUP)
        link.send(_GREETING.pack(bytes.fromhex(secret), self.rank))
        return link

    def _accept(self, listener: socket.socket) -> bool:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return False
        connection.setblocking(False)
        link = _Incoming(connection)
        self._incoming.add(link)
        self._watch(connection, lambda: self._receive(link))
        return True

    def _hung_up(self, peer: int, link: "_Outgoing") -> None:
        """A peer has closed its connection."""
        self._by_file.pop(link.socket.fileno(), None)
        self._epoll.unregister(link.socket)
        self._drain(peer)
        self.lost.add(peer)

    def _drain(self, peer: int) -> None:
        """Handle all that a peer sent before it closed its connections."""
        for listener in (self._listener, self._local_listener):
            while self._accept(listener):
                pass
        for incoming in list(self._incoming):
            while incoming.peer in (peer, None) and self._receive(incoming):
                pass

    def _receive(self, link: "_Incoming") -> bool:
        """Handle what has arrived on a connection, a part at a time; return whether there was anything."""
        try:
            data = link.socket.recv(_RECEIVED_AT_ONCE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._drop(link)
            return False
        if link.peer is None:
            link.rest += data
            if not self._is_authenticated(link):
                return False
            data = b""
        self._handle_frames(link, link.rest + data)
        return True

    def _handle_frames(self, link: "_Incoming", data: bytes) -> None:
        peer, at, end, frames = link.peer, 0, len(data), []
        assert peer is not None
        while end - at >= PREFIX.size:
            length, kind = PREFIX.unpack_from(data, at)
            if end - at - PREFIX.size < length:
                break
            at += PREFIX.size
            frames.append((kind, data[at : at + length]))
            at += length
        link.rest = data[at:]
        for kind, content in frames:
            self._handlers[kind](peer, content)

    def _is_authenticated(self, link: "_Incoming") -> bool:
        """Whether the peer of a connection has sent its rank and the listener's secret."""
        if len(link.rest) < _GREETING.size:
            return False
        secret, peer = _GREETING.unpack_from(link.rest)
        if not secrets.compare_digest(secret, self._secret):
            self._drop(link)
            return False
        link.rest = link.rest[_GREETING.size :]
        link.peer = peer
        self._link_of[peer] = link
        return True

    def _drop(self, link: "_Incoming") -> None:
        self._by_file.pop(link.socket.fileno(), None)
        self._epoll.unregister(link.socket)
        link.socket.close()
        self._incoming.discard(link)
        if link.peer is not None:
            self.lost.add(link.peer)
            self._link_of.pop(link.peer, None)

    def _watch(self, connection: socket.socket, handle: Callable[[], object]) -> None:
        self._by_file[connection.fileno()] = handle
        self._epoll.register(connection, select.EPOLLIN)


def _connected(name: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(name)
    except BaseException:
        connection.close()
        raise
    return connection


def _local_name(secret: bytes) -> str:
    """A listener's name in Linux's abstract namespace, visible within one network namespace only: unix(7)."""
    return f"\0mimo_role/{hashlib.sha256(secret).hexdigest()}"


@cache
def _host_id() -> str:
    """The same for processes of one network namespace on one host, and for no others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}/{Path('/proc/self/ns/net').readlink()}".replace(" ", "")


class _Outgoing:
    """A connection to a peer."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._lock = threading.Lock()
        self._rest: deque[bytes] = deque()
        """Frames that the kernel has not accepted yet. A thread sends them, since this rank may compute or wait meanwhile."""

    def send(self, frame: bytes) -> None:
        """Send what the kernel accepts, and leave the rest to a thread."""
        with self._lock:
            if self._rest:
                self._rest.append(frame)
                return
            rest = self._send_now(frame)
            if rest:
                self._rest.append(rest)
                threading.Thread(target=self._send_rest, name="mimo-launch frames", daemon=True).start()

    def _send_rest(self) -> None:
        writable = select.poll()
        writable.register(self.socket, select.POLLOUT)
        while True:
            writable.poll()
            with self._lock:
                rest = self._send_now(self._rest.popleft())
                if rest:
                    self._rest.appendleft(rest)
                if not self._rest:
                    return

    def _send_now(self, frame: bytes) -> bytes:
        try:
            return frame[self.socket.send(frame) :]
        except BlockingIOError:
            return frame
        except OSError:  # the peer has exited, which is noticed when it is waited for
            return b""


class _Incoming:
    """A connection from a peer."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.peer: int | None = None
        self.rest = b""
        """The beginning of a frame that is not complete."""
