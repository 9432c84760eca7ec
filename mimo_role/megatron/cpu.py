"""Megatron-Core on a machine without a GPU, for tests and development.

Megatron-Core creates its tensors on the current CUDA device, orders work by CUDA streams and keeps its random numbers in
CUDA generators. `run_on_cpu` replaces these parts of torch in this process; Megatron-Core's code runs as it is.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import graph
from torch.overrides import TorchFunctionMode

from mimo_role.errors import ContextError
from mimo_role.megatron.imports import imported

CUDA_TYPES = ("torch.FloatTensor", "torch.HalfTensor", "torch.BFloat16Tensor")
"""What `Tensor.type()` returns for parameters; Megatron-Core's optimizers accept only the same names of `torch.cuda`."""

_entered: list[ExitStack] = []
"""The mode, once it has been entered; it is never left."""


def run_on_cpu() -> None:
    """Let Megatron-Core run in this process, on the calling thread, without a GPU. A second call does nothing.

    `device="cuda"`, a device's number and `.cuda()` mean the CPU; streams and events are empty; CUDA's random numbers come
    from torch's CPU generator, whose state Megatron-Core's tracker swaps: `model_parallel_cuda_manual_seed` gives tp and ep
    ranks their own random numbers as on GPUs (not the same ones). Groups for NCCL get the world's backend. `torch.compile`
    runs functions as they are, the user's too.

    Raises:
        ContextError: a GPU is available, Megatron-Core is not installed, or something that is replaced does not exist in the
            installed versions.
    """
    if _entered:
        return
    if torch.cuda.is_available():
        raise ContextError("run_on_cpu: this machine has a GPU, and Megatron-Core runs on it as it is; do not call run_on_cpu")
    for owner, names in replacements():
        for name in names:
            if not hasattr(owner, name):
                where = getattr(owner, "__name__", owner)
                raise ContextError(f"run_on_cpu: the installed {where} has no {name}; use another version, or run on a GPU")
    imported("megatron.core.parallel_state")._set_global_memory_buffer()  # Megatron-Core's own attention needs it
    for owner, names in replacements():
        for name, value in names.items():
            setattr(owner, name, value)
    torch.compiler.set_stance("force_eager")
    logging.getLogger("megatron.core.tensor_parallel.random").addFilter(_is_not_about_the_cpu_generator)
    _entered.append(ExitStack())
    _entered[0].enter_context(_CudaIsCpu())


def replacements() -> list[tuple[Any, Mapping[str, Any]]]:
    """What `run_on_cpu` sets: modules, and new values by name."""
    states = {"get_rng_state": _get_state, "set_rng_state": _set_state}
    cuda = {
        "current_device": lambda: 0,
        "set_device": _no_op(),
        "synchronize": _no_op(),
        "current_stream": _Nothing,
        "default_stream": _Nothing,
        "stream": nullcontext,
        "Stream": _Nothing,
        "Event": _Nothing,
        "manual_seed": torch.default_generator.manual_seed,
    }
    tracker = imported("megatron.core.tensor_parallel.random")
    private = {"_get_cuda_rng_state": _get_state, "_set_cuda_rng_state": _set_state}
    engine = {"_engine_run_backward": partial(_run_backward, graph._engine_run_backward)}
    collectives = {name: partial(_without_nccl, getattr(dist, name)) for name in ("new_group", "new_subgroups_by_enumeration")}
    collectives["all_to_all_single"] = partial(_with_numbers, dist.all_to_all_single)
    return [
        (torch.cuda, {**cuda, **states}),
        (torch.cuda.random, states),
        (tracker, private),
        (torch.autograd, engine),
        (dist, collectives),
        (imported("megatron.core.parallel_state"), {"_set_global_memory_buffer": _no_op()}),
    ]


class _CudaIsCpu(TorchFunctionMode):
    """Sends every CUDA device that a function of torch is called with to the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"], number_too=True)
        found = func(*(_on_cpu(each, number_too=func is torch.Tensor.to) for each in args), **kwargs)
        is_type = func is torch.Tensor.type and isinstance(found, str) and found in CUDA_TYPES
        return found.replace("torch.", "torch.cuda.") if is_type else found


class _Nothing:
    """A stream or event on a device without any."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., "_Nothing"]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: self


def _on_cpu(value: Any, number_too: bool) -> Any:
    """`value`, or the CPU where it is a CUDA device: by name, as `torch.device` or, in a device's place, by number."""
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    if isinstance(value, str) and value.partition(":")[0] == "cuda":
        return "cpu"
    if number_too and isinstance(value, int) and not isinstance(value, bool):
        return "cpu"
    return value


def _run_backward(run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """torch leaves a mode while it calls one of its functions, `backward` too; the functions of the graph need it."""
    with _CudaIsCpu():
        return run(*args, **kwargs)


def _without_nccl(create: Callable[..., Any], *args: Any, backend: str | None = None, **kwargs: Any) -> Any:
    return create(*args, backend=None if backend == "nccl" else backend, **kwargs)


def _with_numbers(all_to_all_single: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Megatron-Core moves the sizes of splits from a GPU and makes them an array, but leaves those on the CPU tensors."""
    for name in ("output_split_sizes", "input_split_sizes"):
        if isinstance(kwargs.get(name), torch.Tensor):
            kwargs[name] = kwargs[name].tolist()
    return all_to_all_single(*args, **kwargs)


def _no_op() -> Callable[..., None]:
    """A new function that does nothing: dynamo has rules for torch's functions, and refuses one function under two of them."""
    return lambda *_, **__: None


def _get_state(*_: object, **__: object) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_state(new_state: torch.Tensor, *_: object, **__: object) -> None:
    torch.default_generator.set_state(new_state)


def _is_not_about_the_cpu_generator(record: logging.LogRecord) -> bool:
    """Megatron-Core's tracker warns when the CPU's generator has changed; here it is the one that is to change."""
    return not record.getMessage().startswith("CPU RNG state changed")
