"""Resets a forked or spawned rank to the state of a fresh interpreter.

A forked rank begins with the state of the fork server: the same random state in all ranks, the server's signal
handlers, its place in multiprocessing. A spawned rank begins as a child of multiprocessing too.
`tests/launcher/worker/test_fresh_rank.py` lists what is compared, and each remaining difference with its reason.

Nothing needs to be done for `random`, which reseeds itself in a forked child, `tempfile`, which checks its process id,
and `uuid4` and `secrets`, which read the system's generator; umask, limits, locale and interpreter options are
inherited as by a fresh process. The seed of `hash(str)` cannot be changed: every dictionary of the server depends on it.
"""

import multiprocessing
import multiprocessing.process
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from mimo_role.host import environ


def become_fresh() -> None:
    """Reset this process. Call it once, in the rank, after its environment is complete."""
    _reset_signals()
    _become_main_process()
    _replace_streams()
    _keep_descriptors_from_children()
    _draw_new_seeds()
    _apply_environment()
    _unload_launcher()


def _reset_signals() -> None:
    """The fork server ignores SIGTERM; a run that was started with `nohup` ignores SIGHUP."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


def _become_main_process() -> None:
    """Make this the main process for multiprocessing: scripts and libraries check its name and its parent.

    The identity is part of its children's names. The key would be the same in all ranks. The temporary folder is the
    agent's.
    """
    own = multiprocessing.current_process()
    own.name = "MainProcess"
    own.authkey = os.urandom(32)
    own._identity = ()
    own._config.pop("tempdir", None)  # type: ignore[attr-defined]
    multiprocessing.process._parent_process = None  # type: ignore[attr-defined]
    # The ranks' own start method is not what the script's data loaders should use.
    multiprocessing.set_start_method(None, force=True)


def _replace_streams() -> None:
    """A script may close its streams, and torch flushes those that it has redirected."""
    for name in ("stdout", "stderr"):
        kept = getattr(sys, name)
        own = open(kept.fileno(), "w", 1, encoding=kept.encoding, errors=kept.errors, closefd=False)  # noqa: SIM115
        setattr(sys, name, own)
        setattr(sys, f"__{name}__", own)


def _keep_descriptors_from_children() -> None:
    """Descriptors received over a socket or by `spawn` are inheritable: `os.system` would pass the agent's pipes on."""
    for descriptor in sorted(int(entry.name) for entry in Path("/proc/self/fd").iterdir()):
        if descriptor > 2:
            with suppress(OSError):  # that of the listing itself is closed by now
                os.set_inheritable(descriptor, False)


def _draw_new_seeds() -> None:
    """torch and NumPy seed their default generators once per process, from the system's entropy.

    Not by `torch.seed()`: that also queues a seed for CUDA, whose generators start from a constant in a fresh process.
    NumPy's generator exists once `numpy.random` is imported; torch imports NumPy without it.
    """
    import torch

    torch.default_generator.seed()
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()


def _apply_environment() -> None:
    """Apply variables that were read at import, before the module's own ones were set."""
    import torch

    tempfile.tempdir = None
    if (threads := environ.threads()) is not None:
        torch.set_num_threads(threads)


def _unload_launcher() -> None:
    """The script may import a package of its own named `launcher`. `__mp_main__` is mimo-launch's program, which
    multiprocessing runs."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("launcher", "__mp_main__")]:
        del sys.modules[name]
