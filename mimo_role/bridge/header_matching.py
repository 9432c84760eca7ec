"""The headers that peers send, matched with the batches that this rank expects."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile

from mimo_role.bridge.expected_batch import Expected
from mimo_role.bridge.frames import BatchHeader, BatchKey
from mimo_role.bridge.message_tags import Purpose


@dataclass(slots=True)
class _Queue:
    """The batches of one peer, bridge and purpose."""

    expected: dict[BatchKey, Expected] = field(default_factory=dict)
    unclaimed: dict[BatchKey, BatchHeader] = field(default_factory=dict)
    """Headers of batches that this rank has not asked for yet, in the order of arrival."""


class HeaderMatching:
    """Compares each header with the batch that is expected, whichever of the two comes first."""

    def __init__(
        self,
        calls: Container[BatchKey],
        add_peers: Callable[[Iterable[int]], None],
        fail: Callable[[str], None],
        *,
        tags: int,
    ) -> None:
        """
        Args:
            calls: batches that autograd may ask for in another order than that in which they were sent.
            add_peers: gets the ranks from which batches come.
            fail: gets the description of a header that does not match.
            tags: how many batches in a row have different tags; 1 where messages match in the order of posting.
        """
        self._tags = tags
        self._calls = calls
        self._add_peers = add_peers
        self._fail = fail
        self._queues: dict[tuple[int, int, Purpose], _Queue] = {}
        self._by_content: dict[tuple[int, bytes], tuple[Expected, _Queue]] = {}
        """Expected batches by peer and content of the header: the usual header is the expected one, byte for byte."""
        self._abandoned: dict[tuple[int, BatchKey], str] = {}

    def expect(self, expected: Expected) -> None:
        """Expect a batch; if its header has arrived, compare."""
        key = expected.wanted.key
        queue = self._queue(expected.peer, key)
        if queue.unclaimed and self._claim(queue, expected):
            return
        queue.expected[key] = expected
        self._by_content[expected.peer, expected.wanted.content()] = expected, queue

    def header_came(self, peer: int, content: bytes) -> None:
        """Handle the content of a header's frame."""
        if (found := self._by_content.get((peer, content))) is not None:
            expected, queue = found
            if not queue.unclaimed and next(iter(queue.expected.values())) is expected:
                del self._by_content[peer, content], queue.expected[expected.wanted.key]
                expected.header = expected.wanted
                return
        self._other_header_came(peer, BatchHeader.unpacked(content))

    def abandon(self, key: BatchKey, peers: Iterable[int], what: str) -> None:
        """Autograd will not ask for these gradients any more. Zeros are dropped when they arrive; data is an error."""
        for peer in peers:
            header = self._queue(peer, key).unclaimed.pop(key, None)
            if header is None:
                self._abandoned[peer, key] = what
            elif not header.is_zero:
                self._fail(_never_went_back(what))

    def is_unclaimed(self, peer: int, key: BatchKey) -> bool:
        """Whether a header has arrived of a batch that this rank has not asked for."""
        return key in self._queue(peer, key).unclaimed

    @property
    def is_expecting(self) -> bool:
        """Whether this rank has asked for batches whose headers have not arrived."""
        return any(queue.expected for queue in self._queues.values())

    def unclaimed(self) -> Iterator[tuple[int, BatchHeader]]:
        """All headers of batches that this rank has not asked for, with the peers that sent them."""
        for (peer, *_), queue in self._queues.items():
            for header in queue.unclaimed.values():
                yield peer, header

    def clear(self) -> None:
        """Forget everything."""
        self._queues.clear()
        self._by_content.clear()

    def _queue(self, peer: int, key: BatchKey) -> _Queue:
        found = self._queues.get((peer, key.bridge, key.purpose))
        if found is None:
            found = self._queues[peer, key.bridge, key.purpose] = _Queue()
            self._add_peers((peer,))
        return found

    def _claim(self, queue: _Queue, expected: Expected) -> bool:
        """Take the header of a batch that arrived before the batch was expected, if it did."""
        key, unclaimed = expected.wanted.key, queue.unclaimed
        if expected.in_order:
            first = next((header for header in unclaimed.values() if header.key not in self._calls), None)
            if first is not None and first.key != key:
                self._fail_difference(expected, first)
        if (header := unclaimed.get(key)) is None:
            return False
        earlier = dict(takewhile(lambda other: other[0] != key, unclaimed.items()))
        del unclaimed[key]
        self._bind(expected, header, earlier)
        return True

    def _other_header_came(self, peer: int, header: BatchHeader) -> None:
        """Handle a header other than the next one that is expected."""
        key = header.key
        if (what := self._abandoned.pop((peer, key), None)) is not None:
            if not header.is_zero:
                self._fail(_never_went_back(what))
            return
        queue = self._queue(peer, key)
        first = next((expected for expected in queue.expected.values() if expected.in_order), None)
        if first is not None and first.wanted.key != key and key not in self._calls:
            self._fail_difference(first, header)
        elif (expected := queue.expected.pop(key, None)) is not None:
            self._by_content.pop((peer, expected.wanted.content()), None)
            self._bind(expected, header, queue.unclaimed)
        else:
            queue.unclaimed[key] = header

    def _bind(self, expected: Expected, header: BatchHeader, earlier: Mapping[BatchKey, BatchHeader]) -> None:
        residue = header.key.batch % self._tags
        expected.earlier_alike = tuple(
            key for key, other in earlier.items() if key.batch % self._tags == residue and not other.is_zero
        )
        if (problem := expected.difference(header)) is not None:
            self._fail(problem)
        expected.header = header

    def _fail_difference(self, expected: Expected, header: BatchHeader) -> None:
        problem = expected.difference(header)
        assert problem is not None, "the batches are different"
        self._fail(problem)


def _never_went_back(what: str) -> str:
    return f"{what} came back, but backward() was never called there on what the bridge had returned"
