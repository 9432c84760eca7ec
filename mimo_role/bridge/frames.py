"""Frames, which ranks exchange beside data: the identity of each batch, receipts, and failures.

A frame is its length (4 bytes), its kind (1 byte) and its content, little-endian. Data is transferred over process groups,
never in frames.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from mimo_role.bridge.message_tags import Purpose

PREFIX = struct.Struct("<IB")
"""Bytes after the prefix, and the kind."""

_BATCH = struct.Struct("<HBBqiqqiiiq")
_KEY = struct.Struct("<HBqiB")
_EDGE = struct.Struct("<iHBqiB")
_SPEC = struct.Struct("<Hq")
_TRANSFER = struct.Struct("<qqB")


class FrameKind(IntEnum):
    """The kind of a frame."""

    BATCH = 1
    """The data of a batch has been sent, or zeros stand for it."""
    TAKEN = 2
    """A receipt: the data of a batch has been received."""
    SPEC = 3
    """A description of the sender's samples."""
    BLOCKED = 4
    """The sender waits for the receiver: a path of ranks, each of which waits for the next."""
    FAILED = 5
    """The sender has failed; the content is the error."""
    LEAVING = 6
    """The sender has left the job without an error."""
    DONE = 8
    """The sender has completed a phase of leaving: all its peers have completed the one before."""
    RELEASE = 7
    """The sender has failed and is blocked in a transfer with the receiver, which completes it with any data."""


class BatchKey(NamedTuple):
    """One batch in one direction over one bridge."""

    bridge: int
    purpose: Purpose
    batch: int
    """Batches are counted from 0 in the order of their forwards; gradients have the number of their forward."""
    turn: int = 0
    """How many times gradients of the same batch have been transferred before."""


class Position(NamedTuple):
    """The step and micro-batch of a batch; -1 for what a rank does not know."""

    step: int = -1
    """The training step that the script reports by `ctx.step()`."""
    scheduled: int = -1
    """The number of steps that the schedule has run before."""
    micro_batch: int = -1
    micro_batches: int = -1
    """Micro-batches of the step."""
    names: int = -1
    """A checksum of the names of the tensors that a schedule transfers together."""

    def __str__(self) -> str:
        known = (
            (self.step, "step"),
            (self.scheduled if self.step < 0 else -1, "scheduled step"),
            (self.micro_batch, "micro-batch"),
        )
        words = ", ".join(f"{name} {number}" for number, name in known if number >= 0)
        return words + (f" of {self.micro_batches}" if self.micro_batches >= 0 else "")

    def fits(self, other: "Position") -> bool:
        """Whether both can be the same: what either does not know is ignored."""
        return all(mine == theirs or -1 in (mine, theirs) for mine, theirs in zip(self, other, strict=True))


class Returns(IntEnum):
    """Whether the sender of activations expects gradients."""

    NO = 0
    YES = 1
    UNKNOWN = 2


_PURPOSES, _RETURNS = tuple(Purpose), tuple(Returns)


class BatchHeader(NamedTuple):
    """The identity of a batch that one rank sends another."""

    key: BatchKey
    position: Position
    returns: Returns
    is_zero: bool
    """Whether zeros stand for the data, which is not sent."""
    is_kept: bool
    """Whether the sender keeps the data until it gets a receipt."""
    elements: int
    """Elements of the data, over all its messages."""
    description: bytes
    """What both sides must agree on, as `handshake.Description` packs it."""

    def packed(self) -> bytes:
        """The whole frame."""
        content = self.content()
        return PREFIX.pack(len(content), FrameKind.BATCH) + content

    def content(self) -> bytes:
        """The frame without its prefix."""
        bridge, purpose, batch, turn = self.key
        flags = self.returns * 4 + self.is_kept * 2 + self.is_zero
        return _BATCH.pack(bridge, purpose, flags, batch, turn, *self.position, self.elements) + self.description

    @classmethod
    def unpacked(cls, content: bytes) -> "BatchHeader":
        """From a frame's content."""
        bridge, purpose, flags, batch, turn, *position, elements = _BATCH.unpack_from(content)
        key = BatchKey(bridge, _PURPOSES[purpose], batch, turn)
        is_kept, is_zero = bool(flags & 2), bool(flags & 1)
        return cls(key, Position(*position), _RETURNS[flags >> 2], is_zero, is_kept, elements, content[_BATCH.size :])


class Want(NamedTuple):
    """What a rank waits for from a peer: a batch, or the receipt of one that it sent."""

    peer: int
    key: BatchKey
    is_receipt: bool = False


class Edge(NamedTuple):
    """A rank that waits, and what it waits for."""

    rank: int
    want: Want


def taken(key: BatchKey) -> bytes:
    """A frame: the batch has been received."""
    return _framed(FrameKind.TAKEN, _KEY.pack(*key, 0))


def key_of(content: bytes) -> BatchKey:
    """The batch of a `TAKEN` frame."""
    bridge, purpose, batch, turn, _ = _KEY.unpack(content)
    return BatchKey(bridge, _PURPOSES[purpose], batch, turn)


def blocked(path: tuple[Edge, ...]) -> bytes:
    """A frame: each rank of the path waits for the next, and the last one for the frame's receiver."""
    return _framed(FrameKind.BLOCKED, b"".join(_EDGE.pack(edge.rank, *edge.want.key, edge.want.is_receipt) for edge in path))


def path_of(content: bytes, receiver: int) -> tuple[Edge, ...]:
    """The path in a `BLOCKED` frame that `receiver` has received."""
    found = [
        (rank, (bridge, purpose, batch, turn), flag) for rank, bridge, purpose, batch, turn, flag in _EDGE.iter_unpack(content)
    ]
    awaited = [*(rank for rank, _, _ in found[1:]), receiver]
    return tuple(
        Edge(rank, Want(peer, BatchKey(bridge, Purpose(purpose), batch, turn), bool(flag)))
        for (rank, (bridge, purpose, batch, turn), flag), peer in zip(found, awaited, strict=True)
    )


def spec(bridge: int, number: int, values: list[int]) -> bytes:
    """A frame: the numbers that describe a batch."""
    return _framed(FrameKind.SPEC, _SPEC.pack(bridge, number) + struct.pack(f"<{len(values)}q", *values))


def spec_of(content: bytes) -> tuple[int, int, list[int]]:
    """Bridge, number and values of a `SPEC` frame."""
    count = (len(content) - _SPEC.size) // 8
    return (*_SPEC.unpack_from(content), list(struct.unpack_from(f"<{count}q", content, _SPEC.size)))


def failed(text: str) -> bytes:
    """A frame: the sender has failed."""
    return _framed(FrameKind.FAILED, text.encode())


def leaving() -> bytes:
    """A frame: the sender has left the job."""
    return _framed(FrameKind.LEAVING, b"")


def done() -> bytes:
    """A frame: the sender has completed a phase of leaving."""
    return _framed(FrameKind.DONE, b"")


def release(transfers: Sequence[tuple[int, int, bool]]) -> bytes:
    """A frame: tags and bytes of transfers, and whether the frame's sender sends their data."""
    return _framed(FrameKind.RELEASE, b"".join(_TRANSFER.pack(*transfer) for transfer in transfers))


def transfers_of(content: bytes) -> list[tuple[int, int, bool]]:
    """The transfers of a `RELEASE` frame."""
    return [(tag, size, bool(is_send)) for tag, size, is_send in _TRANSFER.iter_unpack(content)]


def _framed(kind: FrameKind, content: bytes) -> bytes:
    return PREFIX.pack(len(content), kind) + content
