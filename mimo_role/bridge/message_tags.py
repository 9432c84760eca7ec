"""Tags of data messages: gloo matches a message with a receive only if their tags are equal."""

from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b

import torch

BRIDGES = 1 << 9
"""The largest number of bridges of one world."""

BATCHES = 1 << 7
"""Batches of one bridge whose numbers differ by less have different tags."""

_SIGNATURES = 1 << 13


class Purpose(IntEnum):
    """The data of a message: activations or gradients, over the bridge or among the replicas of a lane."""

    FORWARD = 0
    BACK = 1
    FORWARD_AMONG_REPLICAS = 2
    BACK_AMONG_REPLICAS = 3

    # Part of keys that are looked up for each message. Enum would hash the name, in Python.
    __hash__ = int.__hash__


def tag_of(bridge: int, purpose: Purpose, batch: int, message: torch.Tensor) -> int:
    """A tag of 31 bits, the most that torch takes.

    The tag distinguishes messages that are in flight. A message's `BatchHeader` alone identifies its batch. Size and dtype are
    part of the tag because gloo aborts the process if a message is longer than its receive.
    """
    signature = _signature(message.numel(), message.dtype)
    return ((bridge * len(Purpose) + purpose) * BATCHES + batch % BATCHES) * _SIGNATURES + signature


def sender_of(tag: int) -> tuple[int, Purpose]:
    """The number of the bridge, and the purpose, of a message with a tag that `tag_of` has made."""
    bridge, purpose = divmod(tag // _SIGNATURES // BATCHES, len(Purpose))
    return bridge, Purpose(purpose)


@lru_cache(maxsize=4096)
def _signature(elements: int, dtype: torch.dtype) -> int:
    digest = blake2b(f"{elements} {dtype}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _SIGNATURES
