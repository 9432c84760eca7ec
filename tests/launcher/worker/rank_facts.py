"""A script that writes the state of its process as JSON, for `test_fresh_rank.py` to compare."""

import ctypes
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import resource
import secrets
import signal
import sys
import tempfile
import threading
import uuid
import warnings
from collections import Counter
from pathlib import Path

IMPORTED_BEFORE = sorted(sys.modules)

OF_THE_RUN = ("MIMO_AGENT_ID", "MIMO_NODE_DIR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "MIMO_RUN_ID")
"""Variables that differ between any two runs."""
FOR_AGENTS = "TORCHELASTIC_SIGNALS_TO_HANDLE"


def own_signals():
    return {number.name: named(signal.getsignal(number)) for number in sorted(signal.Signals)}


def named(value):
    return getattr(value, "__qualname__", None) or (value.name if isinstance(value, signal.Handlers) else repr(value))


def descriptors():
    """The number of open descriptors of each kind, beside the standard streams."""
    return Counter(kind for kind in map(kind_of, open_descriptors()) if kind != os.devnull)


def open_descriptors():
    with os.scandir("/proc/self/fd") as found:
        return [number for number in sorted(int(entry.name) for entry in found) if number > 2 and kind_of(number)]


def kind_of(descriptor):
    try:
        target = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    except FileNotFoundError:  # the one that has listed them
        return None
    if target.startswith(("pipe:", "socket:")):
        return target.partition(":")[0]
    return target if target.startswith("/dev/null") else Path(target).name


def streams():
    found = {}
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        found[name] = {
            "descriptor": kind_of(("stdin", "stdout", "stderr").index(name)),
            "encoding": stream.encoding,
            "errors": stream.errors,
            "buffering": [stream.line_buffering, stream.write_through],
            "is the original": name == "stdin" or stream is getattr(sys, f"__{name}__"),
        }
    return found | {"read from stdin": sys.stdin.read()}


def warning_filters():
    import_what_the_server_has()
    return [repr(entry) for entry in warnings.filters]


def import_what_the_server_has():
    """Import the same modules of torch in all ranks: they set up loggers and add warning filters at import."""
    import torch.distributed.elastic.multiprocessing  # noqa: F401

    import mimo_role.lifecycle  # noqa: F401


def loggers():
    """The loggers that have been set up."""
    import_what_the_server_has()
    found = {"root": logging.getLogger(), **logging.root.manager.loggerDict}
    settings = {
        name: [one.level, [type(handler).__name__ for handler in one.handlers], bool(one.propagate), one.disabled]
        for name, one in found.items()
        if isinstance(one, logging.Logger)
    }
    return {name: setting for name, setting in settings.items() if setting != [logging.NOTSET, [], True, False]}


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return oct(mask)


def own_environment():
    ours = {name: value for name, value in os.environ.items() if name not in (*OF_THE_RUN, FOR_AGENTS)}
    return dict(sorted(ours.items()))


def in_multiprocessing():
    own = multiprocessing.current_process()
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "name": own.name,
        "parent": multiprocessing.parent_process(),
        "daemon": own.daemon,
        "child": multiprocessing.Process().name,
        "children": multiprocessing.active_children(),
        "log level": multiprocessing.get_logger().level,
    }


def as_main():
    main = sys.modules["__main__"]
    names = ("__file__", "__name__", "__spec__", "__package__", "__doc__")
    return {name: getattr(main, name, "missing") for name in names} | {"others": "__mp_main__" in sys.modules}


def torch_settings():
    import torch

    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "matrix products": torch.get_float32_matmul_precision(),
        "benchmark": torch.backends.cudnn.benchmark,
        "anomalies": torch.is_anomaly_enabled(),
        "denormal numbers": (torch.tensor([2.0**-1060], dtype=torch.float64) * 1).item(),
        "CUDA": [torch.cuda.is_initialized(), torch.cuda._is_in_bad_fork(), len(torch.cuda._queued_calls)],
        "sharing": torch.multiprocessing.get_sharing_strategy(),
        "new generator": torch.Generator().initial_seed(),
    }


def torch_threads():
    import torch

    return [torch.get_num_threads(), torch.get_num_interop_threads()]


def drawn_by_seed():
    import numpy
    import torch

    torch.manual_seed(0), random.seed(0), numpy.random.seed(0)
    return [torch.rand(()).item(), torch.nn.functional.dropout(torch.ones(20)).tolist(), random.random(), numpy.random.rand()]


FACTS = {
    # First: what follows opens files and starts threads.
    "descriptors": descriptors,
    "descriptors for children": lambda: [kind_of(number) for number in open_descriptors() if os.get_inheritable(number)],
    "open /dev/null": lambda: [kind_of(number) for number in open_descriptors()].count(os.devnull),
    "threads": lambda: [thread.name for thread in threading.enumerate()],
    "main thread": lambda: threading.current_thread() is threading.main_thread(),
    "signals": own_signals,
    "blocked signals": lambda: [number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "alarm": lambda: [signal.set_wakeup_fd(-1), signal.getitimer(signal.ITIMER_REAL)],
    "gc": lambda: [gc.isenabled(), gc.get_threshold(), gc.get_debug()],
    "frozen objects": lambda: gc.get_freeze_count() > 10_000,  # Python 3.12 freezes a few hundred itself
    "interpreter options": lambda: [repr(sys.flags), sys._xoptions, __debug__, sys.dont_write_bytecode, sys.pycache_prefix],
    "warning options": lambda: sys.warnoptions,
    "arguments": lambda: sys.argv,
    "original arguments": lambda: sys.orig_argv,
    "command line": lambda: Path("/proc/self/cmdline").read_bytes().decode(),
    "executable": lambda: [sys.executable, sys.prefix],
    "path": lambda: sys.path,
    "path hooks": lambda: [[getattr(hook, "__name__", type(hook).__name__) for hook in sys.meta_path], len(sys.path_hooks)],
    "modules": lambda: [name for name in IMPORTED_BEFORE if not name.startswith("multiprocessing")],
    "modules of ours or NumPy's": lambda: [name for name in ("launcher", "numpy.random") if name in IMPORTED_BEFORE],
    "hooks": lambda: [
        hook.__qualname__ for hook in (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook)
    ],
    "tracing": lambda: [sys.gettrace(), sys.getprofile()],
    "locale": lambda: [locale.setlocale(category) for category in (locale.LC_CTYPE, locale.LC_NUMERIC, locale.LC_COLLATE)],
    "encodings": lambda: [sys.getfilesystemencoding(), sys.getfilesystemencodeerrors(), locale.getpreferredencoding()],
    "umask": umask,
    "limits": lambda: {
        name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")
    },
    "interpreter limits": lambda: [sys.getrecursionlimit(), sys.getswitchinterval(), threading.stack_size()],
    "scheduling": lambda: [os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0))],
    "memory killer": lambda: Path("/proc/self/oom_score_adj").read_text(),
    "folder": os.getcwd,
    "folder for temporary files": lambda: [tempfile.tempdir, tempfile.gettempdir()],
    "environment": own_environment,
    "variables for agents": lambda: os.environ.get(FOR_AGENTS),
    "multiprocessing": in_multiprocessing,
    "main module": as_main,
    "streams": streams,
    "process group": lambda: "own" if os.getpgrp() == os.getpid() else "parent's" if os.getpgrp() == os.getppid() else "other",
    "session": lambda: os.getsid(0) == os.getpid(),
    # From here on the script imports.
    "warning filters": warning_filters,
    "logging": loggers,
    "torch": torch_settings,
    "torch threads": torch_threads,
    "numbers of a seeded script": drawn_by_seed,
}
"""Compared between start methods, rank by rank."""


def from_torch():
    import torch

    return torch.rand(()).item()


def dropout():
    import torch

    return torch.nn.functional.dropout(torch.ones(20)).tolist()


def torch_seed():
    import torch

    return torch.initial_seed()


def seed_in_worker(_):
    import torch

    return torch.initial_seed()


def loader_seed():
    import torch

    return list(torch.utils.data.DataLoader([0], num_workers=1, collate_fn=seed_in_worker))


def from_numpy():
    import numpy

    return [numpy.random.rand(), numpy.random.default_rng().random()]


DRAWS = {
    "torch": from_torch,
    "torch.initial_seed": torch_seed,
    "dropout": dropout,
    "DataLoader": loader_seed,
    "numpy": from_numpy,
    "random": random.random,
    "C library": lambda: ctypes.CDLL(None).rand(),
    "uuid4": lambda: str(uuid.uuid4()),
    "uuid1": lambda: str(uuid.uuid1()),
    "tempfile": lambda: next(tempfile._get_candidate_names()),
    "secrets": secrets.token_hex,
    "key of multiprocessing": lambda: bytes(multiprocessing.current_process().authkey).hex(),
    "hash seed": lambda: hash("a text"),
}
"""Values that an unseeded script draws; compared between the ranks of one run."""


def main():
    facts = {name: fact() for name, fact in FACTS.items() if name != "numbers of a seeded script"}
    draws = {name: draw() for name, draw in DRAWS.items()}
    facts["numbers of a seeded script"] = drawn_by_seed()
    text = json.dumps({"facts": facts, "draws": draws}, default=str)
    Path(os.environ["FACTS"], f"{os.environ['RANK']}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
