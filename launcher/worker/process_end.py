"""The end of a forked rank: as that of any Python program, without taking apart what the fork server has imported.

That would have no effect but to copy memory that ranks share, for longer than the rank's start takes. The script's threads are
joined, its exit functions called, its modules and objects taken apart, and its output is written, by the interpreter itself.
Left out are the server's modules and the C exit functions of libraries that it has loaded; after a success also finalizers of
objects that it has made, and what the interpreter frees after all modules.
"""

import atexit
import ctypes
import gc
import os
import sys
import sysconfig
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from types import ModuleType
from typing import Any

_TORN_DOWN = {
    "__main__",
    "builtins",
    "codecs",
    "encodings",
    "io",
    "linecache",
    "os",
    "sys",
    "threading",
    "traceback",
    "warnings",
}
"""Modules that an ending interpreter uses itself."""

_STANDARD_LIBRARY = os.path.join(sysconfig.get_path("stdlib"), "")  # noqa: PTH118
_OF_PACKAGES = tuple(os.path.join("", name, "") for name in ("site-packages", "dist-packages"))  # noqa: PTH118
_HOOK = "__mimo_launch_end__"
_kept: dict[str, ModuleType] = {}
_finalizers: list[Any] = []
_succeeded_in: int | None = None
_exits_early = False


def prepare() -> None:
    """Call this before anything else registers an exit function: the first to be registered is the last to be called."""
    atexit.register(_leave_modules)


def keep_modules() -> None:
    """In the fork server, once it has imported everything: forked ranks will not take this apart."""
    _kept.update((name, module) for name, module in sys.modules.items() if name.partition(".")[0] not in _TORN_DOWN)
    _finalizers.extend(getattr(weakref.finalize, "_registry", ()))  # those of torch's operators
    atexit.register(_decide)
    _skip_clean_up_of_libraries()


def keep_preloaded(modules: Mapping[str, ModuleType]) -> None:
    """In the fork server: forked ranks will not take these apart either.

    Modules that are not installed, such as the user's own, are left out: they may have files to close.
    """
    _kept.update((name, module) for name, module in modules.items() if _is_installed(module))


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return not isinstance(file, str) or file.startswith(_STANDARD_LIBRARY) or any(part in file for part in _OF_PACKAGES)


def succeeded() -> None:
    """The script has ended with exit code 0 in this process, a rank or a child that it has forked."""
    global _succeeded_in
    _succeeded_in = os.getpid()


def end_if_succeeded() -> None:
    """End a process whose script has ended with exit code 0, without taking anything apart. For the last of its exit functions.

    A process group that is written in Python may be kept by torch's C++ code, which would free it without the GIL.
    """
    if _succeeded_in == os.getpid():
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.flush()
        os._exit(0)


def _decide() -> None:
    """Called after the script's exit functions, and before those of the modules that the server has imported.

    Without the finalizers, what the interpreter frees after all modules would end in an abort; so both are left out, or none.
    """
    global _exits_early
    _exits_early = _may_exit_early()
    if _exits_early:
        for finalizer in _finalizers:
            finalizer.atexit = False


def _leave_modules() -> None:
    for name, module in _kept.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kept))
    if _exits_early:
        # The interpreter clears sys after all other modules; it frees what is added to builtins before it collects garbage.
        # PyDLL keeps the GIL: exit functions of C++ code free Python's objects.
        setattr(sys, _HOOK, _End(ctypes.PyDLL(None).exit))
    elif _uses_nanobind():
        setattr(sys, _HOOK, _Mute())


def _may_exit_early() -> bool:
    """Whether the interpreter does nothing that matters after it has taken apart the script's modules.

    It ends with another exit code if it cannot write what a stream of the script's own has buffered, and it calls what
    extension modules, such as mpi4py, have registered by `Py_AtExit`.
    """
    streams = sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__ and getattr(sys.stdout, "write_through", False)
    own = (module for name, module in list(sys.modules.items()) if _kept.get(name) is not module)
    return os.getpid() == _succeeded_in and streams and not any(map(_is_extension, own))


def _is_extension(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    own = str(sysconfig.get_config_var("DESTSHARED"))
    return isinstance(file, str) and file.endswith(tuple(EXTENSION_SUFFIXES)) and not file.startswith(own)


class _End:
    """Ends the process when it is freed, with exit code 0."""

    def __init__(self, exit_process: Callable[[int], Any]) -> None:
        self._exit = exit_process

    # Names of modules are gone by then.
    def __del__(self, collect: Callable[[], int] = gc.collect) -> None:
        collect()
        self._exit(0)


class _Mute:
    """Drops what C code prints to its `stderr` from the moment this is freed. Python does not print to that.

    nanobind, with which triton is bound from 3.8 on, takes objects of kept modules for leaks and lists them after the end of
    the interpreter (`Py_AtExit`). Exit functions of other C libraries are mute too.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(None)
        library.fopen.restype = ctypes.c_void_p
        self._stream = ctypes.c_void_p.in_dll(library, "stderr")
        self._null = library.fopen(os.devnull.encode(), b"w")

    def __del__(self) -> None:
        if self._null:
            self._stream.value = self._null


def _uses_nanobind() -> bool:
    """Whether an extension module has been bound with nanobind, which keeps its data in the interpreter's dict."""
    python = ctypes.pythonapi
    python.PyInterpreterState_Get.restype = ctypes.c_void_p
    python.PyInterpreterState_GetDict.argtypes = [ctypes.c_void_p]
    python.PyInterpreterState_GetDict.restype = ctypes.c_void_p  # a borrowed reference
    names = ctypes.cast(python.PyInterpreterState_GetDict(python.PyInterpreterState_Get()), ctypes.py_object).value
    return any(isinstance(name, str) and name.startswith("__nb_internals") for name in names)


def _skip_clean_up_of_libraries() -> None:
    """End a process after the exit functions of the C libraries that are loaded later, and before those of torch.

    C calls its exit functions in the opposite order of their registration. The two that are registered here write all
    buffered output (`fcloseall`) and end the process (`_exit`). See on_exit(3), which the GNU C library has.
    """
    library = ctypes.CDLL(None)
    with suppress(AttributeError):
        library.on_exit(library._exit, None)
        library.on_exit(library.fcloseall, None)
