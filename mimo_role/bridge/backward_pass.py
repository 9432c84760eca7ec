"""Whether this thread runs a backward pass: the only file that asks autograd's engine, which has no public answer."""

from typing import Any

import torch

_task: Any = getattr(torch._C, "_current_graph_task_id", None)
_NO_TASK = -1


def is_in_backward() -> bool:
    """Whether autograd's engine runs a backward pass in this thread; `False` where torch cannot say."""
    return _task is not None and _task() != _NO_TASK
