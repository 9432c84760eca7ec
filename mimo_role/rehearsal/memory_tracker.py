"""Counts the memory of tensors, fake or real, with torch's own tracker."""
# mypy: disable-error-code="override"

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _UpdateType
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from mimo_role.rehearsal.memory_ledger import MemoryLedger, Place, Purpose

OUTSIDE = "(outside modules)"

_GATHERED = torch.ops.fsdp.split_with_sizes_copy.default
"""By which FSDP2 copies what it has gathered into whole parameters."""
_BUFFERS = (torch.ops.fsdp.all_gather_copy_in.default, torch.ops.fsdp.chunk_cat.default)
"""By which FSDP2 fills the buffers that it gathers or reduces."""


class MemoryTracker(MemTracker):  # type: ignore[misc]
    """torch's tracker of storages, over any number of steps and micro-batches, with other accounts.

    torch's takes snapshots of each module and refuses a second forward pass. This one keeps one ledger of the process.
    Parameters, gradients and states of optimizers are recognized whenever there is a new peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger(before_peak=self._recognize)
        self._modules: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """The path of each module that has a parameter or has run. torch cannot swap tensors with weak references."""
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """Those that have run."""
        self._stepping: Optimizer | None = None
        self._registrations: list[Any] = []

    def __enter__(self) -> "MemoryTracker":
        outermost = self._depth == 0
        super().__enter__()
        if outermost:
            self._registrations = [
                register_module_parameter_registration_hook(self._registered(Purpose.PARAMETERS)),
                register_module_buffer_registration_hook(self._registered(Purpose.BUFFERS)),
            ]
        return self

    def __exit__(self, *arguments: Any) -> None:
        super().__exit__(*arguments)
        if self._depth == 0:
            for handle in self._registrations:
                handle.remove()
            self.ledger.settle()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if func is _GATHERED:
            self._claim(kwargs["out"], Purpose.PARAMETERS, self._path())
        elif func in _BUFFERS:
            self._claim(_tensors([result, (kwargs or {}).get("out")]), Purpose.COMMUNICATION, self._path())
        return result

    def communicated(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors are passed to a collective: those without another purpose are for communication."""
        for tensor in tensors:
            for winfo in self._known(tensor):
                if winfo.place[1] in (Purpose.TEMPORARY, Purpose.OTHER):
                    self._move(winfo, (winfo.place[0], Purpose.COMMUNICATION))

    def _update_snap(self, u_type: Any, winfo: Any, old_mem_consumed: int | None = None, old_reftype: Any = None) -> None:
        """In place of torch's accounts."""
        del old_reftype
        if u_type == _UpdateType.ADD:
            winfo.place = self._place_of_new()
            self.ledger.add(winfo.place, winfo.mem_consumed)
        elif u_type == _UpdateType.DEL:
            self.ledger.add(winfo.place, -winfo.mem_consumed)
        elif u_type == _UpdateType.SIZE:
            if not hasattr(winfo, "place"):  # it was empty
                winfo.place = self._place_of_new()
            self.ledger.add(winfo.place, winfo.mem_consumed - (old_mem_consumed or 0))

    def _place_of_new(self) -> Place:
        if self._in_opt:
            return "(optimizer)", Purpose.TEMPORARY
        path = self._path()
        if self._mod_tracker.is_bw and not self._in_ac:
            return path, Purpose.TEMPORARY
        return path, Purpose.OTHER if path == OUTSIDE and not torch.is_grad_enabled() else Purpose.ACTIVATIONS

    def _path(self) -> str:
        """Of the innermost module that runs."""
        running = self._mod_tracker.parents - {"Global"}
        return max(running, key=lambda path: (path.count("."), path), default=OUTSIDE)

    def _recognize(self) -> None:
        for module, path in self._modules.items():
            for parameter in module.parameters(recurse=False):
                if parameter.grad is not None:
                    self._claim([parameter.grad], Purpose.GRADIENTS, path)
        if self._stepping is not None:
            self._claim_state(self._stepping)

    def _claim(self, tensors: Iterable[torch.Tensor], purpose: Purpose, path: str) -> None:
        for tensor in tensors:
            known = list(self._known(tensor))
            if not known:
                self._track(_MemRefType.PARAM, tensor)
                known = list(self._known(tensor))
            for winfo in known:
                self._move(winfo, (path, purpose))

    def _move(self, winfo: Any, place: Place) -> None:
        if winfo.place != place:
            self.ledger.move(winfo.place, place, winfo.mem_consumed)
            winfo.place = place

    def _known(self, tensor: torch.Tensor) -> Iterator[Any]:
        for storage in get_untyped_storages(tensor):
            winfo, _ = self._WINFO.get(storage, (None, None))
            if winfo is not None and hasattr(winfo, "place"):
                yield winfo

    def _registered(self, purpose: Purpose) -> Any:
        def registered(module: nn.Module, _name: str, tensor: Any) -> None:
            if isinstance(tensor, torch.Tensor):
                path = self._modules.setdefault(module, type(module).__name__)
                self._claim([tensor], purpose, path)

        return registered

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if module not in self._seen:
            self._claim_module(module)
        if self._mod_tracker.is_bw and self._ac_mod is None:
            self._ac_mod, self._in_ac = torch.utils.weak.weakref.ref(module), True
        for tensor in _tensors(inputs):
            self._track(_MemRefType.ACT, tensor)

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        del inputs, outputs
        if self._ac_mod is not None and self._ac_mod() is module:
            self._ac_mod, self._in_ac = None, False

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        """Nothing: torch's takes snapshots here."""

    _post_bw_hook = _pre_bw_hook

    def _claim_module(self, module: nn.Module) -> None:
        """Parameters and buffers of a module that runs for the first time, and of those in it."""
        root = self._mod_tracker.get_known_fqn(module) or type(module).__name__
        for name, inner in module.named_modules():
            if inner in self._seen:
                continue
            self._modules[inner] = self._seen[inner] = path = f"{root}.{name}" if name else root
            self._claim(inner.parameters(recurse=False), Purpose.PARAMETERS, path)
            self._claim(inner.buffers(recurse=False), Purpose.BUFFERS, path)

    def _claim_state(self, optimizer: Optimizer) -> None:
        paths = {
            parameter: path for module, path in self._modules.items() for parameter in module.parameters(recurse=False)
        }
        for parameter, state in list(optimizer.state.items()):
            path = paths.get(parameter, OUTSIDE)
            self._claim(_tensors(list(state.values())), Purpose.OPTIMIZER_STATE, path)

    def _register_global_optimizer_hook(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        def before(optimizer: Optimizer, *_: Any) -> None:
            self._in_opt, self._stepping = True, optimizer

        def after(optimizer: Optimizer, *_: Any) -> None:
            self._claim_state(optimizer)
            self._in_opt, self._stepping = False, None

        self._optimizer_hook_handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)]
