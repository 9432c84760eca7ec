"""The tags of bridges' messages: gloo takes a message for one that is awaited only where their tags are equal."""

from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b

import torch

BRIDGES = 1 << 9
"""The number of bridges of one world that tags can tell apart."""

_BATCHES, _SIGNATURES = 1 << 6, 1 << 13


class Purpose(IntEnum):
    """What a message is for."""

    FORWARD = 0
    BACK = 1
    FORWARD_AMONG_COPIES = 2
    BACK_AMONG_COPIES = 3
    INTRODUCTION = 4
    EXCHANGE = 5


def tag_of(bridge: int, purpose: Purpose, batch: int, message: torch.Tensor) -> int:
    """A tag of 31 bits.

    Two batches of a bridge whose numbers differ by less than 64 are not taken for each other, in whatever order they are
    waited for. Nor are, but once in 8,192 times, messages of unlike size or dtype: gloo would end the process.
    """
    signature = _signature(message.numel(), message.dtype)
    return ((bridge * len(Purpose) + purpose) * _BATCHES + batch % _BATCHES) * _SIGNATURES + signature


@lru_cache(maxsize=4096)
def _signature(elements: int, dtype: torch.dtype) -> int:
    digest = blake2b(f"{elements} {dtype}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % _SIGNATURES
