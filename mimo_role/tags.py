"""The tags of bridges' messages: gloo takes a message for one that is awaited only where their tags are equal."""

import zlib
from enum import IntEnum

import torch

BRIDGES = 1 << 10
"""The number of bridges of one world that tags can tell apart."""

_BATCHES, _SIGNATURES = 1 << 6, 1 << 12


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
    waited for. Nor are, but once in 4,096 times, messages of unlike size or dtype: gloo would end the process.
    """
    signature = zlib.crc32(f"{message.numel()} {message.dtype}".encode()) % _SIGNATURES
    return ((bridge * len(Purpose) + purpose) * _BATCHES + batch % _BATCHES) * _SIGNATURES + signature
