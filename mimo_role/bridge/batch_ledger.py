"""Which batches this rank and its peers have sent and received, and which they still wait for.

Each batch that a rank sends a peer comes with a header (`frames.BatchHeader`). The receiver compares it with the batch that
it expects before it uses any data, and a difference is an error on both sides. All long waits of bridges pass through this
class: for headers and receipts (`_wait`), and for data (`wait_for_data`, which blocks in `TransferGuard.wait`). A wait ends
as soon as any rank that it depends on finds that it cannot complete.
"""

import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from mimo_role.bridge import frames
from mimo_role.bridge.admission import Admission
from mimo_role.bridge.departure import Departure
from mimo_role.bridge.expected_batch import Expected, named
from mimo_role.bridge.frame_channel import FrameChannel
from mimo_role.bridge.frames import BatchHeader, BatchKey, Edge, FrameKind, Want
from mimo_role.bridge.header_matching import HeaderMatching
from mimo_role.bridge.message_tags import BATCHES, Purpose
from mimo_role.bridge.peer_links import Links
from mimo_role.bridge.pending_gradients import PendingGradients
from mimo_role.bridge.sent_batches import Sent, SentBatches
from mimo_role.bridge.transfer_guard import Posted, TransferGuard, Transferring, WaitState
from mimo_role.bridge.wait_cycles import Awaited, WaitCycles
from mimo_role.errors import BridgeError

_ANNOUNCE_AFTER_S = 0.1
"""How long a rank waits before it reports that to those it waits for."""
_POLL_S = 0.1
_SENT_BEFORE_POLL = 2
"""Batches without a receipt from which on this rank polls when it sends another."""
_POLL_AFTER_S = 1.0
"""How long after it has polled a rank polls when it sends: a peer waits longer before it leaves alone."""
_REPORTED = "failure reported by rank"

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


class BatchLedger:
    """The batches of all bridges of this process. As a context manager it admits one thread at a time."""

    def __init__(self, links: Links, timeout_s: float, *, tags: int = BATCHES) -> None:
        """
        Args:
            links: to the other ranks.
            timeout_s: the limit of each wait.
            tags: how many batches of a bridge in a row have different tags; 1 where messages match in the order of posting.
        """
        self.gradients = PendingGradients()
        self._timeout_s = timeout_s
        self._channel = channel = FrameChannel(links)
        self._headers = HeaderMatching(self.gradients.calls, channel.add_peers, self._fail, tags=tags)
        self._sent = SentBatches()
        self._specs: dict[tuple[int, int, int], list[int]] = {}
        self._cycles = WaitCycles()
        self._departure = Departure(channel)
        self._guard = TransferGuard(channel, self._check_wait)
        self._failure: str | None = None
        self._is_raised = False
        """Whether the failure has been raised in the script."""
        self.is_settled = False
        """Whether this rank has left, and no message to or from it is left."""
        self._admission = Admission(self._run_postponed)
        channel.on(FrameKind.BATCH, self._headers.header_came)
        channel.on(FrameKind.TAKEN, self._sent.receipt_came)
        channel.on(FrameKind.SPEC, self._spec_came)
        channel.on(FrameKind.BLOCKED, self._peer_is_blocked)
        channel.on(FrameKind.FAILED, self._peer_failed)
        itself = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close_in_child(itself))

    def __enter__(self) -> "BatchLedger":
        self._admission.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._admission.__exit__(kind, error, trace)

    def when_free(self, work: Callable[[], None]) -> None:
        """Run work now, or when the thread that is within the ledger leaves it. For garbage collection."""
        self._admission.when_free(work)

    def add_peers(self, peers: Iterable[int]) -> None:
        """Add ranks with which a bridge may exchange batches."""
        self._channel.add_peers(peers)

    def expect(self, expected: Expected) -> None:
        """Expect a batch; if its header has arrived, compare.

        Raises:
            BridgeError: another batch came, or one that differs.
        """
        self.check()
        self._headers.expect(expected)
        self.check()

    def send(self, peer: int, header: BatchHeader, sent: Sent | None) -> None:
        """Send a peer the header of a batch, whose data is posted next. `sent` is kept until the peer has received the data.

        It is `None` if zeros stand for the data.

        Raises:
            BridgeError: the peer has left, exited or died.
        """
        self.check()
        self._sent.add(peer, header.key, sent if header.is_kept else None)
        self._channel.send(peer, header.packed())
        if sent is not None and self._departure.is_gone(peer):
            raise self.fail(self._departure.reason(peer, sent.describe(peer, header.key)))

    def acknowledge(self, peer: int, key: BatchKey) -> None:
        """Send the receipt of a batch, with the next frame to the peer or soon."""
        self._channel.acknowledge(peer, key)

    def wait_for(self, awaited: Sequence[Expected]) -> None:
        """Wait for the headers of batches.

        Raises:
            BridgeError: they differ, they did not come within the timeout, or a rank that this depends on has failed.
        """
        for expected in awaited:
            if expected.header is None:
                self._channel.receive_from(expected.peer)
                if expected.header is None:
                    self._wait(lambda: [expected for expected in awaited if expected.header is None])
        self.check()

    def wait_for_data(self, transferring: Transferring) -> None:
        """Wait for messages of data. Meanwhile the guard checks whether they can still come.

        Raises:
            BridgeError: as `wait_for`, or the data could not be transferred.
        """
        try:
            self._guard.wait(transferring)
        except RuntimeError as error:
            raise self.fail_transfer(f"{transferring.describe()}: {error}") from error
        finally:
            self._sent.forget_requested_receipts()
        self.check()

    def keep_in_flight(self, posted: Sequence[Posted]) -> None:
        """Keep messages that nobody will wait for until this rank has left the job: a peer may still receive or send them."""
        self._guard.keep(posted)

    def without_receipt(self, sent: Sent, keys: Iterable[tuple[int, BatchKey]]) -> list[Awaited]:
        """The receipts of one batch that may still arrive."""
        return [
            receipt for receipt in self._sent.without_receipt(sent, keys) if not self._departure.has_left(receipt.want.peer)
        ]

    def wait_until_all_taken(self, bridge: int) -> None:
        """Wait for all receipts of a bridge.

        Raises:
            BridgeError: as `wait_for`.
        """
        self._wait(lambda: self._sent.awaited_receipts(bridge))

    def send_spec(self, peer: int, bridge: int, number: int, values: list[int]) -> None:
        """Send the numbers that describe a batch."""
        self.check()
        self._sent.add(peer, _spec_key(bridge, number))
        self._channel.send(peer, frames.spec(bridge, number, values))

    def wait_for_specs(self, peers: Sequence[int], bridge: int, number: int, place: str) -> list[list[int]]:
        """Wait for those numbers from each of the peers.

        Raises:
            BridgeError: as `wait_for`.
        """
        keys = [(peer, bridge, number) for peer in peers]
        self._wait(lambda: [_AwaitedSpec(*key, place) for key in keys if key not in self._specs])
        return [self._specs.pop(key) for key in keys]

    def poll_if_behind(self) -> None:
        """Handle the frames that have arrived, if many batches have no receipt or it was last done a while ago.

        A rank may send and never wait, and its peers may have left.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        if len(self._sent) > _SENT_BEFORE_POLL or time.monotonic() - self._channel.polled_at > _POLL_AFTER_S:
            self.poll()

    def poll(self) -> None:
        """Handle the frames that have arrived.

        Raises:
            BridgeError: this rank or a peer has failed.
        """
        self.check()
        self._channel.poll(0.0)
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
        """Report a failure to all peers; all calls fail from now on. Returns the error to raise."""
        self._fail(problem)
        self._is_raised = True
        return BridgeError(problem)

    def fail_transfer(self, problem: str) -> BridgeError:
        """As `fail`, for data that could not be transferred, unless a peer has reported the cause."""
        while self._failure is None and self._channel.poll(0.0):
            pass
        return self.fail(problem if self._failure is None else self._failure)

    def abandon(self, key: BatchKey, peers: Iterable[int], what: str) -> None:
        """Autograd will not ask for these gradients any more. Zeros are dropped when they arrive; data is an error."""
        self.gradients.calls.pop(key, None)
        self._headers.abandon(key, peers, what)

    def leave(self) -> None:
        """Send what is owed, wait until all has been received, and leave the job together with the peers.

        Raises:
            BridgeError: a peer has sent what this rank never received, or has not received what this rank sent.
        """
        with self:
            has_failed = self._failure is not None and self._is_raised
            try:
                if not has_failed:
                    self.gradients.send_all()
                    self._channel.send_receipts()
                    self._wait(self._sent.awaited_receipts)
            finally:  # after a failure, too: a peer may be blocked in a transfer with this rank
                self._departure.leave()
            if has_failed:
                return
            self.check()
            for peer, header in self._headers.unclaimed():
                if not header.is_zero and header.elements:
                    raise self.fail(
                        f"rank {self._channel.rank} has left the job without {named(header.key, header.position)} of bridge "
                        f"{header.key.bridge}, which rank {peer} had sent; both sides of a bridge call it equally often"
                    )
            self.is_settled = not self._headers.is_expecting

    def close(self) -> None:
        """Close all connections. Whatever autograd still brings is dropped."""
        with self:
            self._failure = self._failure or "mimo_role.shutdown() has closed the bridges of this rank"
            self.gradients.clear()
            self._sent.clear()
            self._headers.clear()
            self._guard.close()
            self._channel.close()

    def _run_postponed(self, work: Callable[[], None]) -> None:
        is_raised = self._is_raised
        with suppress(BridgeError):  # the failure is recorded, and the next call raises it
            work()
        self._is_raised = is_raised

    def _spec_came(self, peer: int, content: bytes) -> None:
        bridge, number, values = frames.spec_of(content)
        self._specs[peer, bridge, number] = values

    def _peer_is_blocked(self, peer: int, content: bytes) -> None:
        path = frames.path_of(content, self._channel.rank)
        want = path[-1].want
        if len(path) == 1 and want.is_receipt and not self._headers.is_unclaimed(peer, want.key):
            self.acknowledge(peer, want.key)  # it is being received, or has been
        else:
            self._cycles.add(path)

    def _peer_failed(self, peer: int, content: bytes) -> None:
        text = content.decode(errors="replace")
        self._fail(text if text.startswith(_REPORTED) else f"{_REPORTED} {peer}: {text}")

    def _fail(self, problem: str) -> None:
        if self._failure is None:
            self._failure = problem
            self._channel.broadcast(frames.failed(problem))

    def _wait(self, missing: Callable[[], Sequence[Awaited]]) -> None:
        if not missing():
            return
        self._channel.poll(0.0)
        state = WaitState()
        while awaited := missing():
            self._channel.send_receipts()
            self._check_wait(awaited, state)
            self._channel.poll(_POLL_S)
        self.check()

    def _check_wait(self, awaited: Sequence[Awaited], state: WaitState) -> None:
        """
        Raises:
            BridgeError: this rank or a peer has failed, or what is awaited will not come.
        """
        self.check()
        gone = next((item for item in awaited if self._departure.is_gone(item.want.peer)), None)
        if gone is not None:
            raise self.fail(self._departure.reason(gone.want.peer, gone.describe()))
        waited_s = time.monotonic() - state.began
        # A little before gloo's own limit, at which it breaks all connections.
        if awaited and waited_s > 0.9 * self._timeout_s:
            raise self.fail(f"{awaited[0].describe()}: timed out waiting for {self._timeout_s:g} s")
        if waited_s > _ANNOUNCE_AFTER_S and not state.is_announced:
            state.is_announced = True
            for want in (item.want for item in awaited):
                # The receipts of data that is kept are sent anyway, when the data has arrived.
                if not (want.is_receipt and self._sent.is_kept(want.peer, want.key)):
                    self._channel.send(want.peer, frames.blocked((Edge(self._channel.rank, want),)))
        if self._cycles and (problem := self._resolve_cycles(awaited)) is not None:
            raise self.fail(problem)

    def _resolve_cycles(self, awaited: Sequence[Awaited]) -> str | None:
        return self._cycles.resolve(
            self._channel.rank,
            awaited,
            self.gradients.owed,
            self._is_still_blocked,
            lambda peer, path: self._channel.send(peer, frames.blocked(path)),
        )

    def _is_still_blocked(self, edge: Edge) -> bool:
        """Whether a peer that has reported to wait for this rank must still do so."""
        want = edge.want
        if want.is_receipt:
            return self._headers.is_unclaimed(edge.rank, want.key)
        return not self._sent.was_sent(edge.rank, want.key)


def _close_in_child(ledger: "weakref.ref[BatchLedger]") -> None:
    """A forked process, such as a data-loader worker, is not the rank, and must not keep its connections open."""
    if (own := ledger()) is not None:
        own._failure = "a process that was forked from a rank has no bridges"
        own._admission.reset()
        own._channel.reset_lock()
        own.close()


@dataclass(frozen=True)
class _AwaitedSpec:
    """The description of a batch that has not arrived."""

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
    """Stands for a description among batches, whose numbers are not negative."""
    return BatchKey(bridge, Purpose.FORWARD, -1 - number)
