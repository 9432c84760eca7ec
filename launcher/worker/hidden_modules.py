"""Modules that look as if they had not been imported yet, in a process that has imported them already."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class HiddenModules(MetaPathFinder, Loader):
    """A set of modules. Importing one of them brings all back as they are.

    Imports by other threads wait until `on_import` has returned, as they wait for a module that is being executed.
    """

    def __init__(self, modules: Mapping[str, ModuleType], on_import: Callable[[], None]) -> None:
        """Hide the modules. They can be found once this finder is in `sys.meta_path`.

        Args:
            modules: by their names.
            on_import: called when the first of them is imported, before the others are back.
        """
        self.modules = dict(modules)
        self._on_import = on_import
        self._specs = {name: module.__spec__ for name, module in modules.items()}
        self.is_hidden = True
        self._imported: dict[str, str] = {}
        """The name of the module whose import brings all back, once there is one."""
        for name, module in modules.items():
            sys.modules.pop(name, None)
            parent, attribute = self._place_in_parent(name)
            if parent.get(attribute) is module:
                del parent[attribute]

    def let_find(self) -> None:
        """Let imports find the modules, before any others of their names."""
        if self.is_hidden and self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def leave(self) -> None:
        """Let no import find the modules."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def bring_back(self) -> None:
        """Let the modules look imported."""
        self.leave()
        self.is_hidden = False
        for name, module in self.modules.items():
            sys.modules.setdefault(name, module)
            parent, attribute = self._place_in_parent(name)
            parent.setdefault(attribute, module)

    def _place_in_parent(self, name: str) -> tuple[dict[str, Any], str]:
        """The names in the package of a module that can be imported without it, and the module's own name there."""
        package, _, attribute = name.rpartition(".")
        parent = None if package in self.modules else sys.modules.get(package)
        return {} if parent is None else vars(parent), attribute

    def import_now(self) -> None:
        """The same, as an import of one of them would."""
        if self.is_hidden:
            self.is_hidden = False
            self._on_import()
            self.bring_back()

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The specification of a hidden module."""
        original = self._specs.get(name)
        if original is None:
            return None
        spec = ModuleSpec(name, self, origin=original.origin, is_package=original.submodule_search_locations is not None)
        spec.submodule_search_locations = original.submodule_search_locations
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module as it is."""
        return self.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """The module has been executed: bring all hidden modules back, and keep the module's own specification.

        Until this returns, importlib lets other threads wait that import the same module. Those that import another one of
        the set wait here, for the first one. importlib ends such waits where threads wait for each other.
        """
        first = self._imported.setdefault("name", module.__name__)
        if first == module.__name__:
            self.import_now()
        else:
            __import__(first)
        module.__spec__ = self._specs[module.__name__]
