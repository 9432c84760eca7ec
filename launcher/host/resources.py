"""The CPU cores, GPUs and memory of this machine, without torch."""

import os
from pathlib import Path

from mimo_role.host import environ

_DRIVERS_GPUS = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")
_MEMORY = Path("/proc/meminfo")


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus() -> int:
    """NVIDIA GPUs that a process started here would see."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    # A container has the files of its own GPUs, and may have all of the machine's in /proc, or none. The files of a machine
    # may be created by the first process that uses a GPU.
    if files := list(_DEVICES.glob("nvidia[0-9]*")):
        return sum(os.access(file, os.R_OK | os.W_OK) for file in files)
    return len(list(_DRIVERS_GPUS.iterdir())) if _DRIVERS_GPUS.is_dir() else 0


def available_memory() -> int | None:
    """Bytes that can be used without swapping; `None` where the system does not report it."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def rank_slots() -> int:
    """The default number of ranks on one machine, as torchrun's `--nproc-per-node auto`: its GPUs, else its cores."""
    return gpus() or cores()


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it started, including those over a cgroup's limit."""
    try:
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
