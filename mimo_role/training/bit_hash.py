"""A hash of the bits of a tensor, computed where the tensor is."""

import torch

_WORDS_AT_ONCE = 1 << 20
"""64-bit words that are mixed at the same time: a few times 8 MiB of memory, whatever the size of the tensor."""


def bit_hash(tensor: torch.Tensor) -> torch.Tensor:
    """An int64 scalar on the tensor's device that depends on each bit, and so on the sign of a zero and the kind of a NaN.

    The words are mixed with their places by the finalizer of SplitMix64 and added up, modulo 2^64.

    Args:
        tensor: of any dtype and shape, dense.
    """
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = len(raw) // 8 * 8
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    if whole < len(raw):
        rest = torch.zeros(8, dtype=torch.uint8, device=tensor.device)
        rest[: len(raw) - whole] = raw[whole:]
        total = total + _mixed(rest.view(torch.int64), -1)
    if whole:
        first = 0
        for words in torch.split(_words(raw[:whole]), _WORDS_AT_ONCE):
            total = total + _mixed(words, first)
            first += len(words)
    return total


def _words(raw: torch.Tensor) -> torch.Tensor:
    aligned = raw if raw.storage_offset() % 8 == 0 else raw.clone()
    return aligned.view(torch.int64)


def _mixed(words: torch.Tensor, first: int) -> torch.Tensor:
    """The sum of the words after SplitMix64's finalizer (Steele, Lea and Flood, 2014), each with its place added."""
    places = torch.arange(first, first + len(words), dtype=torch.int64, device=words.device)
    mixed = words + (places + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ _shifted(mixed, shift)) * _signed(factor)
    return (mixed ^ _shifted(mixed, 31)).sum()


def _shifted(words: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right; torch's is arithmetic."""
    return (words >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
