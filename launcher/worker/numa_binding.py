"""Binds a rank to CPU cores near its GPU, as torchrun does with `--numa-binding`.

torchrun binds the processes that it starts itself; torch has no public way to bind the process that asks. What is private
is used in this file only; `tests/launcher/worker/test_numa_binding.py` fails when it changes.
"""

import inspect
import json
import logging
import os
from contextlib import suppress
from typing import Any

from launcher.config.schema import NumaBinding
from launcher.errors import LaunchError

_APPLY = "_maybe_apply_numa_binding_to_current_process"
_OPTIONS = "numa_options"


def bind(mode: NumaBinding, gpu: int) -> None:
    """Bind this process, with all its threads, to the cores that torch chooses for a GPU.

    A child asks torch: that initializes CUDA, and the script may still choose the devices that it sees.

    Args:
        mode: which cores.
        gpu: its index among those that this process sees.

    Raises:
        LaunchError: torch finds no cores, or this torch cannot bind processes.
    """
    answer = _ask_in_child(mode, gpu)
    if "error" in answer:
        where = f"runtime.numa_binding={mode.value}: GPU {gpu}"
        raise LaunchError(f"{where}: {answer['error']}; leave it out to run without a binding")
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 (pathlib would make paths of the names)
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), answer["cores"])


def _ask_in_child(mode: NumaBinding, gpu: int) -> dict[str, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(_choose(mode, gpu)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    crash = {"error": f"the process that asks torch for the cores has crashed (exit code {code})"}
    answer: dict[str, Any] = json.loads(data) if data else crash
    return answer


def _choose(mode: NumaBinding, gpu: int) -> dict[str, Any]:
    """Bind this process, and return its cores or the error."""
    logging.disable()  # torch logs the traceback of an error
    try:
        import torch
        from torch.numa import binding

        apply = vars(binding).get(_APPLY)
        if apply is None:
            return {"error": f"torch {torch.__version__} cannot bind processes"}
        # Its name depends on the release.
        (index,) = (name for name in inspect.signature(apply).parameters if name != _OPTIONS)
        options = binding.NumaOptions(affinity_mode=binding.AffinityMode(mode.value))
        apply(**{index: gpu, _OPTIONS: options})
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"cores": sorted(os.sched_getaffinity(0))}
