"""The tags of bridges' data messages: gloo matches a message with a receive only where their tags are equal."""

from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b

import torch

BRIDGES = 1 << 9
"""The number of bridges of one world that tags can tell apart."""

BATCHES = 1 << 7
"""Batches of one bridge whose numbers differ by less have different tags."""

_SIGNATURES = 1 << 13


class Purpose(IntEnum):
    """What a message carries."""

    FORWARD = 0
    BACK = 1
    FORWARD_AMONG_COPIES = 2
    BACK_AMONG_COPIES = 3

    # Part of keys that are looked up for each message; Enum's own would hash the name, in Python.
    __hash__ = int.__hash__


def tag_of(bridge: int, purpose: Purpose, batch: int, message: torch.Tensor) -> int:
    """A tag of 31 bits, the most that torch takes.

    The tag keeps messages apart while they are in flight. Which batch a message belongs to is decided by its `BatchHeader`
    alone. Size and dtype are part of the tag because gloo ends the process where a message is longer than its receive.
    """
    signature = _signature(message.numel(), message.dtype)
    return ((bridge * len(Purpose) + purpose) * BATCHES + batch % BATCHES) * _SIGNATURES + signature


@lru_cache(maxsize=4096)
def _signature(elements: int, dtype: torch.dtype) -> int:
    digest = blake2b(f"{elements} {dtype}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _SIGNATURES
