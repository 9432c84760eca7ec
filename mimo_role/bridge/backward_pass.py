"""Whether this thread runs a backward pass. Autograd has no public way to find out; what is private is used here only."""

from typing import Any

import torch

_task: Any = getattr(torch._C, "_current_graph_task_id", None)
_NO_TASK = -1


def is_in_backward() -> bool:
    """Whether autograd's engine runs a backward pass in this thread; `False` if torch cannot tell."""
    return _task is not None and _task() != _NO_TASK
