"""What an import may leave in a process that forks ranks, and what would be lost, shared or different in them."""

import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.formatting import counted
from launcher.host import reaper

_THREADS_END_WITHIN_S = 1.0
"""A thread that has been joined ends a moment later."""
_SHAREABLE = ("/dev/null", "/dev/urandom", "/dev/random", "/dev/zero", "/dev/nvidia")
"""Devices without a position, among them those by which NVIDIA's management library counts GPUs."""
_OF_CUDA = "/dev/nvidia-uvm"
"""CUDA alone opens it, also where another library than torch has initialized CUDA."""

State = Mapping[str, Any]
"""Values by the names that a message has for them."""


@dataclass(frozen=True)
class _Hazard:
    """One kind of state that an import must leave as it is."""

    state: Callable[[], State]
    message: str
    """What the import has done with the new or changed ones, `{}`, and why it does not fit a fork."""


def watch() -> Callable[[], str | None]:
    """Remember the state of this process.

    Returns:
        A function that describes what has changed since then; it returns `None` if ranks can be forked as before.
    """
    _prepare_generators()
    threads, before = _threads(), [hazard.state() for hazard in _HAZARDS]

    def find() -> str | None:
        for hazard, old in zip(_HAZARDS, before, strict=True):
            changed = [name for name, value in hazard.state().items() if name not in old or old[name] != value]
            if changed:
                return hazard.message.format(", ".join(changed))
        if lost := _lost_threads(threads):
            return f"started {counted(len(lost), 'thread')} ({', '.join(lost)}), which a fork would lose"
        return None

    return find


def _threads() -> dict[int, str]:
    """Threads by their ids in the kernel: Python's with their names there, others with the name that they have in `ps`."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    ids = [int(name) for name in os.listdir("/proc/self/task")]  # noqa: PTH208
    return {number: names.get(number) or _name_of(number) for number in ids}


def _name_of(thread: int) -> str:
    try:
        return Path(f"/proc/self/task/{thread}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""  # it has ended


def _lost_threads(before: Mapping[int, str]) -> list[str]:
    """The names of the threads that are new, and that a fork would lose.

    A library that is made for forks ends its threads by a handler of pthread_atfork(3), in the process that forks, and
    starts them again when they are needed, on both sides. OpenBLAS, which NumPy and SciPy bring, does. So a process is
    forked for a trial: the threads that remain afterwards are those that nobody looks after.
    """
    deadline = time.monotonic() + _THREADS_END_WITHIN_S
    is_forked = False
    while new := [name for number, name in _threads().items() if number not in before]:
        if not is_forked:
            _fork_for_trial()
            is_forked = True
        if time.monotonic() > deadline:
            return new
        os.sched_yield()
    return []


def _fork_for_trial() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 and later warn of forks beside threads
        child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _children() -> State:
    return dict.fromkeys(map(reaper.describe, reaper.processes_of("", os.getpid())))


def _signals() -> State:
    """What signals do; the kernel knows the handlers of C code too."""
    own, blocked = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return {one.name: (signal.getsignal(one), reaper.catches(own, one), one in blocked) for one in signal.Signals}


def _descriptors() -> dict[str, str]:
    """What each descriptor refers to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with suppress(OSError):  # the one by which they are listed is closed again
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
    return found


def _open_files() -> State:
    """Files, sockets and pipes."""
    found = _descriptors().items()
    return {f"{target} (descriptor {name})": target for name, target in found if not target.startswith(_SHAREABLE)}


def _shared_memory() -> State:
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    mapped = (line.split(maxsplit=5) for line in lines)
    return {f"{part[5] if len(part) > 5 else 'memory'} at {part[0]}": None for part in mapped if part[1].startswith("rw-s")}


def _folder() -> State:
    return {os.getcwd(): None}  # noqa: PTH109


def _arguments() -> State:
    return {"sys.argv": list(sys.argv)}


def _torch() -> State:
    import torch
    import torch.distributed as dist

    is_joined = dist.is_available() and dist.is_initialized()
    uses_cuda = torch.cuda.is_initialized() or _OF_CUDA in _descriptors().values()  # type: ignore[no-untyped-call]
    return {"CUDA": uses_cuda, "torch.distributed": is_joined}


def _prepare_generators() -> None:
    """Draw from the generators, so that a few more numbers leave the keys as they are that `_keys` compares."""
    random.random()  # noqa: S311
    if "numpy" in sys.modules:
        import numpy.random

        numpy.random.random_sample()


def _keys() -> State:
    """What seeding changes in the generators of random numbers, and drawing does not."""
    import torch

    found: dict[str, Any] = {"torch": torch.initial_seed(), "random": random.getstate()[1][:-1]}
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        found["numpy.random"] = numpy_random.get_state()[1].tobytes()
    return found


_HAZARDS = (
    _Hazard(_torch, "initialized {}, which a fork cannot use"),
    _Hazard(_children, "started {}, whose parent no rank would be"),
    _Hazard(_signals, "changed what {} does, which mimo-launch sets for the process that forks"),
    _Hazard(_open_files, "left {} open, whose position all ranks would share"),
    _Hazard(_shared_memory, "mapped {} for writing, which all ranks would share"),
    _Hazard(_folder, "changed the current folder to {}"),
    _Hazard(_arguments, "changed {}, which each rank sets anew"),
    _Hazard(_keys, "seeded {}, whose generator each rank seeds anew"),
)
