"""Spans of a step in the traces of `torch.profiler`."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.profiler import record_function

# Asking takes 0.05 us, an unrecorded span 5 us.
_is_enabled = getattr(torch.autograd, "_profiler_enabled", lambda: True)


def span(what: str, of: str, micro_batches: Sequence[int] = ()) -> AbstractContextManager[Any]:
    """A span such as `forward language.1, micro-batch 3`, if a profiler runs."""
    if not _is_enabled():
        return nullcontext()
    if not micro_batches:
        return record_function(f"{what} {of}")
    first, last = micro_batches[0], micro_batches[-1]
    numbers = f"micro-batch {first}" if first == last else f"micro-batches {first}-{last}"
    return record_function(f"{what} {of}, {numbers}")
