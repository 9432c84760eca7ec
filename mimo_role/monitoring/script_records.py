"""What a script records itself: spans and scalars."""

import functools
import numbers
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch.profiler import record_function

from mimo_role.errors import RecordingError
from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Kind

P = ParamSpec("P")
R = TypeVar("R")


class ScriptSpan:
    """A named span: in a `with` block once, or around a function each time that it is called."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name
        self._recorded = recorder.span(Kind.SPAN, name)
        self._profiled = record_function(name)

    def __enter__(self) -> None:
        self._profiled.__enter__()  # type: ignore[no-untyped-call]
        self._recorded.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._recorded.__exit__(*error)
        self._profiled.__exit__(*error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, in a span."""

        @functools.wraps(function)
        def in_span(*args: P.args, **kwargs: P.kwargs) -> R:
            with ScriptSpan(self._recorder, self._name):
                return function(*args, **kwargs)

        return in_span


def log_scalars(recorder: Recorder, values: Mapping[str, Any]) -> None:
    """Record numbers by name. One on a CUDA device is copied without a synchronization, and recorded when it is there.

    Raises:
        RecordingError: a value that is no number.
    """
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            _log_tensor(recorder, name, value)
        elif isinstance(value, numbers.Real):
            recorder.scalar(name, float(value))
        else:
            raise RecordingError(f"ctx.log({name}=...): {type(value).__name__} is no number; pass a number or a scalar tensor")


def _log_tensor(recorder: Recorder, name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise RecordingError(f"ctx.log({name}=...): a {type(tensor).__name__}; pass a plain tensor, of a DTensor full_tensor()")
    if tensor.dim() or tensor.is_complex():
        raise RecordingError(
            f"ctx.log({name}=...): a tensor of shape {list(tensor.shape)} and {tensor.dtype}; pass a real one of no dimensions"
        )
    if not recorder.is_on:
        return
    if tensor.device.type != "cuda" or not recorder.has_device_clock:
        recorder.scalar(name, float(tensor.detach()))
        return
    if torch.cuda.is_current_stream_capturing():  # the copy would become a part of the graph
        recorder.lose()
        return
    copied = torch.empty((), dtype=tensor.dtype, pin_memory=True)
    copied.copy_(tensor.detach(), non_blocking=True)
    recorder.scalar_when_done(name, copied.item)
