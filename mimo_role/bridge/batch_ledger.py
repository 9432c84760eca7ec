"""Which batches this rank and its peers have sent, taken and still wait for.

Each batch that a rank sends a peer comes with a header (`frames.BatchHeader`). The receiver compares it with the batch that
it expects before it uses any data, and a difference fails both sides. All long waits of bridges happen here: for headers,
and for the receipts that come back. So a wait ends as soon as any rank that it depends on knows that it has no end.
"""

import os
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from types import TracebackType
from typing import Protocol

from mimo_role.bridge import frames
from mimo_role.bridge.expected_batch import Expected, named
from mimo_role.bridge.frames import BatchHeader, BatchKey, Edge, FrameKind, Want
from mimo_role.bridge.message_tags import BATCHES, Purpose
from mimo_role.bridge.peer_links import PeerLinks
from mimo_role.bridge.transfer_guard import TransferGuard, Transferring, WaitState, complete_transfers
from mimo_role.bridge.wait_cycles import Awaited, Owed, WaitCycles
from mimo_role.errors import BridgeError

_ANNOUNCE_AFTER_S = 0.1
"""How long a rank waits before it reports that to those it waits for."""
_POLL_S = 0.1
_LEAVE_WITHIN_S = 5.0
"""How long a rank that leaves waits for its peers to leave too, to notice what one of them still sends or awaits."""
_PHASES = 8
"""Phases of leaving. A rank ends each when its peers have ended the one before, so a failure reaches ranks that far away."""
_MANY = 2
"""Batches without a receipt from which on this rank looks for some when it sends another."""
_REMEMBERED = 1 << 14
"""Sent batches that are remembered, to recognize reports of waits that have ended since."""


_shared: "BatchLedger | None" = None


def share(ledger: "BatchLedger | None") -> None:
    """Make a ledger that of this process, or none."""
    global _shared
    _shared = ledger


def shared() -> "BatchLedger":
    """The ledger of this process.

    Raises:
        BridgeError: there is no context.
    """
    if _shared is None:
        raise BridgeError("bridges need a context: call mimo_role.init() first")
    return _shared


class Sent(Protocol):
    """A batch on its way to its receivers."""

    def was_taken(self, peer: int) -> None:
        """A peer has received its part."""

    def describe(self, peer: int, key: BatchKey) -> str:
        """What was sent to whom, for messages."""


@dataclass
class _Stream:
    """What comes from one peer over one bridge for one purpose."""

    awaited: dict[BatchKey, Expected] = field(default_factory=dict)
    unclaimed: dict[BatchKey, BatchHeader] = field(default_factory=dict)
    """Headers of batches that this rank has not asked for yet, in the order of their arrival."""


class BatchLedger:
    """The batches of all bridges of this process. As a context manager it admits one thread at a time."""

    def __init__(self, links: PeerLinks | None, timeout_s: float) -> None:
        """
        Args:
            links: to the other ranks; `None` where there is nobody to exchange frames with.
            timeout_s: the limit of each wait.
        """
        self._links = links
        self._timeout_s = timeout_s
        self._streams: dict[tuple[int, int, Purpose], _Stream] = {}
        self._exact: dict[tuple[int, bytes], tuple[Expected, _Stream]] = {}
        """What is awaited, by the peer and the content of the frame with which it should come."""
        self._sent: dict[tuple[int, BatchKey], Sent] = {}
        """What has no receipt yet. It keeps the tensors that are being sent."""
        self._taken: set[tuple[int, BatchKey]] = set()
        """Receipts of data that is not kept, for which a blocked rank has asked."""
        self._was_sent: OrderedDict[tuple[int, BatchKey], None] = OrderedDict()
        self._specs: dict[tuple[int, int, int], list[int]] = {}
        self._cycles = WaitCycles()
        self._bridged: set[int] = set()
        """Ranks at the other ends of bridges, used or not."""
        self._left: set[int] = set()
        self._done: Counter[int] = Counter()
        """By peer, the phases of leaving that it has ended."""
        self._abandoned: dict[tuple[int, BatchKey], str] = {}
        self.calls: dict[BatchKey, Callable[[int], None]] = {}
        """Calls of this rank whose gradients have not come back: starts to receive them from a peer."""
        self.owed: dict[BatchKey, Owed] = {}
        """Gradients that have not been sent."""
        self.started: list[Owed] = []
        """Those of them for which a backward pass has come."""
        self._failure: str | None = None
        self._is_raised = False
        """Whether the script has seen the failure."""
        self._receipts: dict[int, bytearray] = {}
        """Receipts that go with the next frame to a peer."""
        self._lock = threading.RLock()
        self._depth = 0
        self._frames_lock = threading.RLock()
        """Held by the thread that handles frames: the one within the ledger, or the guard while that one is blocked."""
        self._blocked: Transferring | None = None
        self._completing: list[object] = []
        """Transfers that peers were blocked in."""
        self._guard: TransferGuard | None = None
        self._postponed: list[Callable[[], None]] = []
        if links is not None:
            links.on(FrameKind.BATCH, self._header_came)
            links.on(FrameKind.TAKEN, self._receipt_came)
            links.on(FrameKind.SPEC, self._spec_came)
            links.on(FrameKind.BLOCKED, self._peer_is_blocked)
            links.on(FrameKind.FAILED, self._peer_failed)
            links.on(FrameKind.LEAVING, lambda peer, _: self._left.add(peer))
            links.on(FrameKind.DONE, lambda peer, _: self._done.update((peer,)))
            links.on(FrameKind.RELEASE, lambda peer, content: self._completing.extend(complete_transfers(peer, content)))
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_in_child(itself))

    def __enter__(self) -> "BatchLedger":
        self._lock.acquire()
        self._depth += 1
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            while kind is None and self._depth == 1 and self._postponed:
                is_raised = self._is_raised
                with suppress(BridgeError):  # the failure is noted, and the next call raises it
                    self._postponed.pop(0)()
                self._is_raised = is_raised
        finally:
            self._depth -= 1
            self._lock.release()

    def when_free(self, act: Callable[[], None]) -> None:
        """Act now, or when the thread that is within the ledger leaves it. For garbage collection, which may run anywhere."""
        self._postponed.append(act)
        if self._lock.acquire(blocking=False):
            try:
                if self._depth == 0:
                    with self:
                        pass
            finally:
                self._lock.release()

    def expect(self, expected: Expected) -> None:
        """Wait for a batch from now on; if its header is there already, compare.

        Raises:
            BridgeError: another batch came, or one that differs.
        """
        self.check()
        key = expected.wanted.key
        stream = self._stream(expected.peer, key)
        if stream.unclaimed and self._claim(stream, expected):
            self.check()
            return
        stream.awaited[key] = expected
        self._exact[expected.peer, expected.wanted.content()] = expected, stream

    def _claim(self, stream: "_Stream", expected: Expected) -> bool:
        """Take the header of a batch that has come before it was asked for, if it has."""
        key, unclaimed = expected.wanted.key, stream.unclaimed
        if expected.in_order:
            first = next((header for header in unclaimed.values() if header.key not in self.calls), None)
            if first is not None and first.key != key:
                self._fail(expected.difference(first))
        if (header := unclaimed.get(key)) is None:
            return False
        earlier = list(takewhile(lambda other: other != key, unclaimed))
        del unclaimed[key]
        self._bind(expected, header, earlier)
        return True

    def send(self, peer: int, header: BatchHeader, sent: Sent | None) -> None:
        """Send a peer the header of a batch, whose data is posted next. `sent` is kept until the peer has taken the data.

        It is `None` where zeros stand for the data.

        Raises:
            BridgeError: the peer has gone.
        """
        self.check()
        if header.is_kept and sent is not None:
            self._sent[peer, header.key] = sent
        self._was_sent[peer, header.key] = None
        if len(self._was_sent) > _REMEMBERED:
            self._was_sent.popitem(last=False)
        self._send(peer, header.packed())
        if sent is not None and self._is_gone(peer):
            raise self.fail(self._reason(peer, sent.describe(peer, header.key)))

    def add_peers(self, peers: Iterable[int]) -> None:
        """Ranks with which a bridge may exchange batches."""
        self._bridged.update(peers)

    def acknowledge(self, peer: int, key: BatchKey) -> None:
        """Send the receipt of a batch, with the next frame to the peer or soon."""
        with self._frames_lock:
            receipts = self._receipts.setdefault(peer, bytearray())
            receipts += frames.taken(key)

    def wait_for(self, awaited: Sequence[Expected]) -> None:
        """Wait for the headers of batches.

        Raises:
            BridgeError: they do not fit, they did not come within the timeout, or a rank that this depends on has failed.
        """
        for expected in awaited:
            if expected.header is None and self._links is not None:
                with self._frames_lock:
                    self._links.receive_from(expected.peer)
                if expected.header is None:
                    self._wait(lambda: [expected for expected in awaited if expected.header is None])
        self.check()

    def transfer(self, transferring: Transferring) -> None:
        """Wait for messages of data. Meanwhile the guard watches whether they can still come.

        Raises:
            BridgeError: as `wait_for`, or the data could not be moved.
        """
        if self._guard is None and self._links is not None:
            self._guard = TransferGuard(self._look_after)
        self._blocked = transferring
        try:
            for message in transferring.messages:
                message.work.wait()
        except RuntimeError as error:
            self._unblock()
            raise self.fail_transfer(f"{transferring.describe()}: {error}") from error
        self._unblock()
        self.check()

    def without_receipt(self, sent: Sent, keys: Iterable[tuple[int, BatchKey]]) -> list[Awaited]:
        """What of a batch no receipt is known of. Those of data that is not kept come when a peer hears of a long wait."""
        return [_Receipt(*item, sent) for item in keys if item not in self._taken and item[0] not in self._left]

    def wait_until_all_taken(self, bridge: int) -> None:
        """Wait for all receipts of a bridge.

        Raises:
            BridgeError: as `wait_for`.
        """
        self._wait(lambda: [_Receipt(*item, sent) for item, sent in list(self._sent.items()) if item[1].bridge == bridge])

    def send_spec(self, peer: int, bridge: int, number: int, values: list[int]) -> None:
        """Send the numbers that describe an exchange."""
        self.check()
        self._was_sent[peer, _spec_key(bridge, number)] = None
        self._send(peer, frames.spec(bridge, number, values))

    def wait_for_specs(self, peers: Sequence[int], bridge: int, number: int, place: str) -> list[list[int]]:
        """Wait for those numbers from each of the peers.

        Raises:
            BridgeError: as `wait_for`.
        """
        keys = [(peer, bridge, number) for peer in peers]
        self._wait(lambda: [_Spec(*key, place) for key in keys if key not in self._specs])
        return [self._specs.pop(key) for key in keys]

    def poll_if_behind(self) -> None:
        """Handle what has arrived, if many batches have no receipt: this rank sends and never waits.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        if len(self._sent) > _MANY:
            self.poll()

    def poll(self) -> None:
        """Handle what has arrived.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        self.check()
        self._poll(0.0)
        self.check()

    def check(self) -> None:
        """
        Raises:
            BridgeError: this rank or a peer has failed.
        """
        if self._failure is not None:
            self._is_raised = True
            raise BridgeError(self._failure)

    def fail(self, problem: str) -> BridgeError:
        """Report a failure to all peers; everything fails from now on. Returns the error to raise."""
        self._fail(problem)
        self._is_raised = True
        return BridgeError(problem)

    def fail_transfer(self, problem: str) -> BridgeError:
        """The same for data that could not be moved, unless a peer has reported why."""
        while self._failure is None and self._poll(0.0):
            pass
        return self.fail(problem if self._failure is None else self._failure)

    def send_started(self, but: Sequence[Owed] = ()) -> None:
        """Send the gradients for which backward passes have come, with some exceptions: no more of them will.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        for owed in [owed for owed in self.started if owed not in but]:
            owed.send()

    def abandon(self, key: BatchKey, peers: Iterable[int], what: str) -> None:
        """Autograd will not ask for these gradients any more. Zeros that come are dropped; others are an error."""
        self.calls.pop(key, None)
        for peer in peers:
            header = self._stream(peer, key).unclaimed.pop(key, None)
            if header is None:
                self._abandoned[peer, key] = what
            elif not header.is_zero:
                self._fail(_never_went_back(what))

    def leave(self) -> None:
        """Send what is owed, wait until all has been taken, and take leave of all peers.

        Raises:
            BridgeError: a peer has sent what this rank never took, or has not taken what this rank sent.
        """
        with self:
            if self._links is None:
                return
            if self._failure is not None and self._is_raised:
                self._send_all(frames.leaving())
                self._linger()
                return
            for owed in list(self.owed.values()):
                owed.send()
            self._send_receipts()
            self._wait(lambda: [_Receipt(*item, sent) for item, sent in list(self._sent.items())])
            self._send_all(frames.leaving())
            self._linger()
            self.check()
            for (peer, *_), stream in self._streams.items():
                for header in stream.unclaimed.values():
                    if not header.is_zero and header.elements:
                        raise self.fail(
                            f"rank {self._links.rank} has left the job without {named(header.key, header.position)} of bridge "
                            f"{header.key.bridge}, which rank {peer} had sent; both sides of a bridge call it equally often"
                        )

    def _linger(self) -> None:
        """Handle what still comes, for a few seconds at most, until all peers have left, and theirs, and so on.

        One of them may be blocked in a transfer with this rank, or still have to report a failure.
        """
        until = time.monotonic() + _LEAVE_WITHIN_S
        for phase in range(_PHASES):
            while not all(self._is_done(peer, phase) for peer in self._peers()) and time.monotonic() < until:
                self._poll(_POLL_S)
            self._send_all(frames.done())

    def close(self) -> None:
        """Close all connections. Whatever autograd still brings is dropped."""
        with self:
            self._failure = self._failure or "mimo_role.shutdown() has closed the bridges of this rank"
            self.owed.clear()
            self.started.clear()
            self.calls.clear()
            self._sent.clear()
            self._streams.clear()
            self._exact.clear()
            self._completing.clear()
            if self._guard is not None:
                self._guard.close()
            with self._frames_lock:
                if self._links is not None:
                    self._links.close()

    def _stream(self, peer: int, key: BatchKey) -> _Stream:
        found = self._streams.get((peer, key.bridge, key.purpose))
        if found is None:
            found = self._streams[peer, key.bridge, key.purpose] = _Stream()
        return found

    def _bind(self, expected: Expected, header: BatchHeader, earlier: Iterable[BatchKey]) -> None:
        residue = header.key.batch % BATCHES
        expected.earlier_alike = tuple(key for key in earlier if key.batch % BATCHES == residue)
        if (problem := expected.difference(header)) is not None:
            self._fail(problem)
        expected.header = header

    def _header_came(self, peer: int, content: bytes) -> None:
        if (found := self._exact.get((peer, content))) is not None:
            expected, stream = found
            if not stream.unclaimed and next(iter(stream.awaited.values())) is expected:
                del self._exact[peer, content], stream.awaited[expected.wanted.key]
                expected.header = expected.wanted
                return
        self._other_header_came(peer, BatchHeader.unpacked(content))

    def _other_header_came(self, peer: int, header: BatchHeader) -> None:
        """Handle a header other than the one that is expected next."""
        key = header.key
        if (what := self._abandoned.pop((peer, key), None)) is not None:
            if not header.is_zero:
                self._fail(_never_went_back(what))
            return
        stream = self._stream(peer, key)
        first = next((expected for expected in stream.awaited.values() if expected.in_order), None)
        if first is not None and first.wanted.key != key and key not in self.calls:
            self._fail(first.difference(header))
        elif (expected := stream.awaited.pop(key, None)) is not None:
            self._exact.pop((peer, expected.wanted.content()), None)
            self._bind(expected, header, stream.unclaimed)
        else:
            stream.unclaimed[key] = header

    def _receipt_came(self, peer: int, content: bytes) -> None:
        key = frames.key_of(content)
        if (sent := self._sent.pop((peer, key), None)) is not None:
            sent.was_taken(peer)
        else:
            self._taken.add((peer, key))

    def _spec_came(self, peer: int, content: bytes) -> None:
        bridge, number, values = frames.spec_of(content)
        self._specs[peer, bridge, number] = values

    def _peer_is_blocked(self, peer: int, content: bytes) -> None:
        assert self._links is not None
        path = frames.path_of(content, self._links.rank)
        want = path[-1].want
        if len(path) == 1 and want.is_receipt and want.key not in self._stream(peer, want.key).unclaimed:
            self.acknowledge(peer, want.key)  # it is being received, or has been
        else:
            self._cycles.add(path)

    def _peer_failed(self, peer: int, content: bytes) -> None:
        text = content.decode(errors="replace")
        self._fail(text if text.startswith(_REPORTED) else f"{_REPORTED} {peer}: {text}")

    def _fail(self, problem: str | None) -> None:
        assert problem is not None
        if self._failure is None:
            self._failure = problem
            self._send_all(frames.failed(problem))

    def _send_all(self, frame: bytes) -> None:
        """Send a frame to every rank with which this one has to do."""
        for peer in self._peers():
            assert self._links is not None
            with suppress(BridgeError):  # it cannot be reached, and there is a failure to report already
                self._links.send(peer, frame)

    def _peers(self) -> set[int]:
        return set() if self._links is None else {*self._links.peers(), *self._bridged, *(peer for peer, *_ in self._streams)}

    def _is_gone(self, peer: int) -> bool:
        return peer in self._left or (self._links is not None and peer in self._links.lost)

    def _is_done(self, peer: int, phase: int) -> bool:
        """Whether a peer has left, and ended the phases before this one."""
        has_ended = self._is_gone(peer) and self._done[peer] >= phase
        return has_ended or (self._links is not None and peer in self._links.lost)

    def _reason(self, peer: int, awaited: str) -> str:
        if peer in self._left:
            return f"{awaited}, but that rank has left the job: its script has ended, or called mimo_role.shutdown()"
        return f"{awaited}, but that rank has exited or died: connection closed by peer"

    def _send(self, peer: int, frame: bytes) -> None:
        assert self._links is not None
        with self._frames_lock:
            if (receipts := self._receipts.pop(peer, None)) is not None:
                frame = bytes(receipts) + frame
            self._links.send(peer, frame)

    def _send_receipts(self) -> None:
        for peer in list(self._receipts):
            self._send(peer, b"")

    def _poll(self, timeout_s: float) -> bool:
        """Handle the frames that have arrived, and return whether there were any; with a timeout, wait for the first."""
        if self._links is None:
            return False
        ready = self._links.ready(timeout_s)
        with self._frames_lock:
            self._links.handle(ready)
        return bool(ready)

    def _unblock(self) -> None:
        with self._frames_lock:  # the guard may be handling frames
            self._blocked = None
            self._taken.clear()

    def _look_after(self, seen: Transferring | None) -> Transferring | None:
        """What the guard does again and again: if this rank is still in the transfer that it has `seen`, stand in for it.

        Returns:
            The transfer that this rank is in now.
        """
        blocked = self._blocked
        if blocked is None or blocked is not seen:
            with self._frames_lock:
                self._send_receipts()
            return blocked
        assert self._links is not None
        ready = self._links.ready(_POLL_S)
        with self._frames_lock:
            if self._blocked is not blocked:
                return self._blocked
            self._links.handle(ready)
            self._send_receipts()
            try:
                self.check()
                self._look_at(blocked.missing(), blocked.wait_state)
            except BridgeError:
                if not blocked.is_released:
                    blocked.is_released = True
                    for peer, transfers in blocked.by_peer().items():
                        self._links.send(peer, frames.release(transfers))
        return blocked

    def _wait(self, missing: Callable[[], Sequence[Awaited]]) -> None:
        awaited = missing()
        if not awaited:
            return
        self._poll(0.0)
        state = WaitState()
        while awaited := missing():
            self.check()
            assert self._links is not None, "a batch comes from another rank"
            self._send_receipts()
            self._look_at(awaited, state)
            self._poll(_POLL_S)
        self.check()

    def _look_at(self, awaited: Sequence[Awaited], state: WaitState) -> None:
        """
        Raises:
            BridgeError: what this rank waits for will not come.
        """
        assert self._links is not None
        gone = next((item for item in awaited if self._is_gone(item.want.peer)), None)
        if gone is not None:
            raise self.fail(self._reason(gone.want.peer, gone.describe()))
        waited_s = time.monotonic() - state.began
        # A little before gloo's own limit, at which it breaks all connections.
        if awaited and waited_s > 0.9 * self._timeout_s:
            raise self.fail(f"{awaited[0].describe()}: timed out waiting for {self._timeout_s:g} s")
        if waited_s > _ANNOUNCE_AFTER_S and not state.is_announced:
            state.is_announced = True
            for item in awaited:
                # The receipts of data that is kept come by themselves, when it has arrived.
                if not (item.want.is_receipt and (item.want.peer, item.want.key) in self._sent):
                    self._links.send(item.want.peer, frames.blocked((Edge(self._links.rank, item.want),)))
        if self._cycles and (problem := self._resolve_cycles(awaited)) is not None:
            raise self.fail(problem)

    def _resolve_cycles(self, awaited: Sequence[Awaited]) -> str | None:
        assert self._links is not None
        links = self._links
        return self._cycles.resolve(
            links.rank, awaited, self.owed, self._is_still_blocked, lambda peer, path: links.send(peer, frames.blocked(path))
        )

    def _is_still_blocked(self, edge: Edge) -> bool:
        """Whether a peer that has reported to wait for this rank must still do so."""
        want = edge.want
        if want.is_receipt:
            return want.key in self._stream(edge.rank, want.key).unclaimed
        return (edge.rank, want.key) not in self._was_sent


def _close_in_child(ledger: "weakref.ref[BatchLedger]") -> None:
    """A forked process, such as a data-loader worker, is not the rank, and must not keep its connections open."""
    if (own := ledger()) is not None:
        own._failure = "a process that was forked from a rank has no bridges"
        own._lock, own._frames_lock = threading.RLock(), threading.RLock()  # threads that held them are not here
        own.close()


_REPORTED = "failure reported by rank"


@dataclass(frozen=True)
class _Receipt:
    """A receipt that has not come."""

    peer: int
    key: BatchKey
    sent: Sent

    @property
    def want(self) -> Want:
        return Want(self.peer, self.key, is_receipt=True)

    def describe(self) -> str:
        return self.sent.describe(self.peer, self.key)


@dataclass(frozen=True)
class _Spec:
    """The description of an exchange that has not come."""

    peer: int
    bridge: int
    number: int
    place: str

    @property
    def want(self) -> Want:
        return Want(self.peer, _spec_key(self.bridge, self.number))

    def describe(self) -> str:
        return f"{self.place} waits for rank {self.peer} to describe what it sends (exchange_spec() number {self.number})"


def _spec_key(bridge: int, number: int) -> BatchKey:
    """What stands for an exchange among batches, whose numbers are not negative."""
    return BatchKey(bridge, Purpose.FORWARD, -1 - number)


def _never_went_back(what: str) -> str:
    return f"{what} came back, but backward() was never called there on what the bridge had returned"
