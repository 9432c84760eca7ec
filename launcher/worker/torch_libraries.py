"""Loads torch's C++ libraries while a second thread imports Python modules.

`import torch._C` has the dynamic linker load `libtorch.so` and run its constructors, which is an eighth of the import and
needs no Python, but Python holds its lock meanwhile. A call of dlopen(3) by ctypes does not. It is made at the moment at
which Python would have loaded them, in the same thread and with the same flags, after all that torch has prepared for it.
"""

import ctypes
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_EXTENSION = "torch._C"
_LIBRARY = "libtorch.so"
"""It brings all libraries of torch but the one for Python."""

_PATIENCE_S = 10.0
"""How long the first thread waits for the second, which needs 0.2 s. It would wait for ever for one that imports torch."""

_EXTENSIONS = ("cmath", "decimal", "unicodedata")
"""Extension modules that sympy imports and torch has not imported by then. The second thread would wait for the linker."""


@contextmanager
def loaded_beside(name: str) -> Iterator[None]:
    """Import a module in a second thread while torch's libraries are loaded within the block, if it imports torch.

    No Python code runs beside that of the module, which has been imported before the code of torch continues. The filters of
    warnings that it adds come after those of torch. If it cannot be imported, what needs it raises the error.

    Args:
        name: of a module that torch imports too, and that does not import torch.
    """
    finder = _Finder(name)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        finder.close()


class _Finder:
    """Finds `torch._C` once, as Python does, and loads the libraries before it is created."""

    def __init__(self, name: str) -> None:
        self._module = name
        self._thread = threading.Thread(target=self._import, name="mimo-launch imports", daemon=True)
        self._filters: list[Any] = []

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _EXTENSION or path is None:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._prepare(spec.loader, Path(path[0], "lib", _LIBRARY))
        return spec

    def _prepare(self, loader: Any, library: Path) -> None:
        """Finders are called under a lock that all imports need, loaders are not."""

        def create_module(spec: ModuleSpec) -> Any:
            del loader.create_module
            self._load(library)
            return loader.create_module(spec)

        loader.create_module = create_module

    def _load(self, library: Path) -> None:
        if not library.exists():
            return
        for each in _EXTENSIONS:
            _import(each)
        with suppress(RuntimeError):  # no thread can be started
            self._thread.start()
            load(library)
            self._thread.join(_PATIENCE_S)

    def _import(self) -> None:
        with warnings.catch_warnings():
            before = len(warnings.filters)
            _import(self._module)
            self._filters = list(warnings.filters[: len(warnings.filters) - before])

    def close(self) -> None:
        """Wait for the thread, add its filters of warnings, and find nothing any more."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        if self._thread.ident is not None:
            self._thread.join()
        warnings.filters[:0] = self._filters  # type: ignore[index]
        with warnings.catch_warnings():  # its end lets Python read the filters anew
            pass


def load(library: Path) -> None:
    """Load a library and what it depends on. Other threads run meanwhile. A failure is left to the import, which repeats it."""
    with suppress(AttributeError):
        load_library = ctypes.CDLL(None).dlopen
        load_library.restype, load_library.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_int)
        load_library(bytes(library), sys.getdlopenflags())


def _import(name: str) -> None:
    with suppress(Exception):
        import_module(name)
