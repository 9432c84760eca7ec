"""What a checkpoint is loaded into on one rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mimo_role.checkpoint.contents import Manifest
from mimo_role.checkpoint.model_state import Modules, form_of, names_of, root_of, set_weights, weights_of
from mimo_role.checkpoint.optimizer_state import NamedOptimizers, Optimizers, Slot
from mimo_role.context import RoleContext


@dataclass
class Fit:
    """How one rank's names and those of the checkpoint fit together."""

    wanted: set[str] = field(default_factory=set)
    """All names of this rank that the checkpoint has."""
    problems: list[str] = field(default_factory=list)
    has_optimizer: bool = False


class Target:
    """This rank's tensors and other values, by name, as DCP's `load` takes them."""

    def __init__(self, path: Path, manifest: Manifest, *, strict: bool) -> None:
        self.state: dict[str, Any] = {}
        self.saved: Mapping[str, Any] = {}
        """What the checkpoint has, by name."""
        self._path = path
        self._manifest = manifest
        self._strict = strict
        self._root = nn.ModuleDict()
        self._weights: dict[str, Any] = {}
        self._slots: list[Slot] = []
        self._optimizers: NamedOptimizers | None = None

    def build(self, ctx: RoleContext, modules: Modules, optimizer: Optimizers) -> Fit:
        """Collect what can be loaded.

        Raises:
            CheckpointError: modules or optimizers that cannot be loaded into.
        """
        self.saved = FileSystemReader(self._path).read_metadata().state_dict_metadata
        self._root = root_of(modules, ctx.topology, ctx.rank)
        self._optimizers = NamedOptimizers(optimizer, self._root, names_of(self._root))
        self._weights = weights_of(self._root)
        fit = Fit(has_optimizer=self._optimizers.given)
        for name, value in self._weights.items():
            self._add(name, value, fit)
        self._add_optimizers(fit)
        return fit

    def finish(self) -> None:
        """Put into modules and optimizers what DCP's `load` has put into `state`."""
        assert self._optimizers is not None
        set_weights(self._root, {name: self.state.get(name, value) for name, value in self._weights.items()})
        for slot in self._slots:
            if slot.name in self.state:
                slot.holder[slot.key] = self.state[slot.name]
        self._optimizers.restore_settings(self._manifest.settings)

    def _add_optimizers(self, fit: Fit) -> None:
        assert self._optimizers is not None
        self._optimizers.begin()
        self._slots = list(self._optimizers.slots())
        found = {slot.parameter for slot in self._slots if slot.name in self.saved}
        # A parameter that never had a gradient has no state, there and here.
        stateless = {slot.parameter for slot in self._slots} - found
        if self._strict:
            stateless &= self._manifest.settings.keys()
        for slot in self._slots:
            if slot.parameter not in stateless:
                self._add(slot.name, slot.holder[slot.key], fit)
        self._optimizers.forget(stateless)

    def _add(self, name: str, value: Any, fit: Fit) -> None:
        """Add one value, or the reason against it."""
        stored = self.saved.get(name)
        if stored is None:
            if self._strict:
                fit.problems.append(f"{name} is not in the checkpoint")
            return
        fit.wanted.add(name)
        here = form_of(value)
        there = _form_there(stored)
        if (here is None) != (there is None) or (here and there and here[0] != there[0]):
            fit.problems.append(f"{name} is {_text(there)} in the checkpoint and {_text(here)} here")
        elif here != there and self._strict:
            fit.problems.append(f"{name} is of {there and there[1]} in the checkpoint and of {here and here[1]} here")
        else:
            self.state[name] = value


def _form_there(stored: Any) -> tuple[tuple[int, ...], str] | None:
    return (tuple(stored.size), str(stored.properties.dtype)) if isinstance(stored, TensorStorageMetadata) else None


def _text(form: tuple[tuple[int, ...], str] | None) -> str:
    return "no tensor" if form is None else f"a tensor of {form[0]}"
