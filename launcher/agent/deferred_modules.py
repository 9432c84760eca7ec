"""Leaves out a part of the import of torch that the agent has no use for.

The agent runs no operator. `torch._meta_registrations`, private to torch, which imports it last, has no effect but to register
the shapes that operators return on the device `meta`; it takes a quarter of the import. Here it is loaded when something reads
one of its names.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from mimo_role.host import environ

UNUSED = "torch._meta_registrations"
_BRINGS_COMPILER = "TORCH_COMPILE_DEBUG"
"""With this variable torch imports its compiler in the middle of its own import, and that takes part in a circle of imports
which only ends well if the module has been executed."""


class _Deferred(ModuleType):
    """A module that has not been executed. Python calls `__getattr__` only for names that it does not have."""

    def __getattr__(self, name: str) -> object:
        if self.__class__ is not _Deferred or name.startswith("__"):  # the import system looks for some of these
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__class__ = ModuleType  # type: ignore[assignment]
        loader = self.__spec__.loader if self.__spec__ is not None else None
        assert isinstance(loader, _LaterLoader)
        loader.loader.exec_module(self)
        return getattr(self, name)


class _LaterLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Finder:
    """Finds one module, as Python does, with a loader that executes it later."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != UNUSED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LaterLoader(spec.loader)
        return spec


@contextmanager
def without_unused_modules() -> Iterator[None]:
    """Within the block, an import of torch leaves the module out until it is used."""
    if environ.get(_BRINGS_COMPILER) is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
