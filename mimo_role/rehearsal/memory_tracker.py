"""Counts the memory of tensors, fake or real, with torch's own tracker."""
# mypy: disable-error-code="override,no-untyped-call,misc,method-assign"

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch._guards import active_fake_mode
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._tools.common_utils import get_untyped_storages
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType, _UpdateType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

from mimo_role.rehearsal.memory_ledger import MemoryLedger, Place, Purpose
from mimo_role.rehearsal.module_paths import OUTSIDE, ModulePaths
from mimo_role.rehearsal.tensor_leaves import tensors_in

_OPTIMIZER = "(optimizer)"
_WAIT = torch.ops._c10d_functional.wait_tensor.default
"""Which gives a new tensor if it is fake, but none in a real run."""

_WHOLE_PARAMETERS = torch.ops.fsdp.split_with_sizes_copy.default
"""By which FSDP2 copies what it has gathered into whole parameters."""
_FILLS_BUFFERS = (torch.ops.fsdp.all_gather_copy_in.default, torch.ops.fsdp.chunk_cat.default)
"""By which FSDP2 fills the buffers that it gathers or reduces."""


class MemoryTracker(MemTracker):
    """torch's tracker of storages, over any number of steps and micro-batches, with other accounts.

    torch's takes snapshots of each module and refuses a second forward pass. This one keeps one ledger of the process.
    Gradients and states of optimizers are recognized whenever there is a new peak.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = MemoryLedger(before_peak=self._recognize)
        self._mod_tracker: Any = ModulePaths(self._name_modules)
        # Weak references to modules, not to parameters: torch refuses to swap tensors that have some.
        self._modules: WeakIdKeyDictionary = WeakIdKeyDictionary()
        """The path of each module that has parameters or has run."""
        self._stepping: Optimizer | None = None
        self._propagating = 0
        self._fake_mode: Any = None
        """The one of the script, or none."""
        self._registrations: list[Any] = []

    def __enter__(self) -> "MemoryTracker":
        outermost = self._depth == 0
        super().__enter__()
        if outermost:
            self._fake_mode = active_fake_mode()
            # torch's own seam around the computation of shapes of whole DTensors, which takes no memory.
            ShardingPropagator._fake_mode_lock = _Uncounted(self)  # type: ignore[assignment]
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
        """In place of torch's, which looks for other fake modes and at each module's peak at each operator."""
        kwargs = kwargs or {}
        if self._propagating:
            return func(*args, **kwargs)
        if DTensor in types:
            return NotImplemented  # its own operators come next, on shards
        is_wait = func is _WAIT and isinstance(args[0], FakeTensor)
        result = args[0] if is_wait else func(*args, **kwargs)
        for tensor in tensors_in(result):
            if not isinstance(tensor, FakeTensor) or tensor.fake_mode is self._fake_mode:
                self._track(_MemRefType.ACT, tensor)  # the type is not used: see `_place_of_new`
        if func is _WHOLE_PARAMETERS:
            self._claim(kwargs["out"], Purpose.PARAMETERS, self._mod_tracker.current)
        elif func in _FILLS_BUFFERS:
            self._claim(tensors_in([result, kwargs.get("out")]), Purpose.COMMUNICATION, self._mod_tracker.current)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled within modes, and torch's wrapper takes as long as an operator."""
        return False

    def communicated(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors are passed to a collective: those without another purpose are for communication."""
        for tensor in tensors:
            for winfo in self._known(tensor):
                # Buckets of gradients are made outside modules, when a model is wrapped.
                if winfo.place[1] in (Purpose.TEMPORARY, Purpose.OTHER) or winfo.place == (OUTSIDE, Purpose.ACTIVATIONS):
                    self._move(winfo, (winfo.place[0], Purpose.COMMUNICATION))

    def _update_snap(self, u_type: Any, winfo: Any, old_mem_consumed: int | None = None, old_reftype: Any = None) -> None:
        """In place of torch's accounts."""
        del old_reftype
        if winfo.device.type == "meta" or u_type == _UpdateType.REF:
            return
        if not hasattr(winfo, "place"):
            winfo.place = self._place_of_new()
        if u_type == _UpdateType.ADD:
            self.ledger.add(winfo.place, winfo.mem_consumed)
        elif u_type == _UpdateType.DEL:
            self.ledger.add(winfo.place, -winfo.mem_consumed)
        elif u_type == _UpdateType.SIZE:
            self.ledger.add(winfo.place, winfo.mem_consumed - (old_mem_consumed or 0))

    def _place_of_new(self) -> Place:
        path = self._mod_tracker.current
        if self._in_opt:
            return _OPTIMIZER, Purpose.TEMPORARY
        if self._mod_tracker.is_bw and not self._mod_tracker.is_recomputing:
            return path, Purpose.TEMPORARY
        return path, Purpose.OTHER if path == OUTSIDE and not torch.is_grad_enabled() else Purpose.ACTIVATIONS

    def _recognize(self) -> None:
        for module, path in self._modules.items():
            for parameter in module.parameters(recurse=False):
                if parameter.grad is not None:
                    self._claim([parameter.grad], Purpose.GRADIENTS, path)
        if self._stepping is not None:
            self._claim_state(self._stepping)

    def _claim(self, tensors: Iterable[torch.Tensor], purpose: Purpose, path: str) -> None:
        for tensor in tensors:
            self._track(_MemRefType.PARAM, tensor)
            for winfo in self._known(tensor):
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

    def _registered(self, purpose: Purpose) -> Callable[[nn.Module, str, Any], None]:
        def registered(module: nn.Module, _name: str, tensor: Any) -> None:
            if isinstance(tensor, torch.Tensor):
                self._claim([tensor], purpose, self._modules.setdefault(module, type(module).__name__))

        return registered

    def _name_modules(self, root: nn.Module) -> None:
        """Before a module runs for the first time: its parameters and buffers, and those of the modules in it."""
        for name, module in root.named_modules():
            path = f"{type(root).__name__}.{name}" if name else type(root).__name__
            self._modules[module] = path
            self._mod_tracker.name(module, path)
            self._claim(module.parameters(recurse=False), Purpose.PARAMETERS, path)
            self._claim(module.buffers(recurse=False), Purpose.BUFFERS, path)

    def _claim_state(self, optimizer: Optimizer) -> None:
        paths = {parameter: path for module, path in self._modules.items() for parameter in module.parameters(recurse=False)}
        for parameter, state in list(optimizer.state.items()):
            self._claim(tensors_in(state), Purpose.OPTIMIZER_STATE, paths.get(parameter, OUTSIDE))

    def _register_global_optimizer_hook(self) -> None:
        def before(optimizer: Optimizer, *_: Any) -> None:
            self._in_opt, self._stepping = True, optimizer

        def after(optimizer: Optimizer, *_: Any) -> None:
            self._claim_state(optimizer)
            self._in_opt, self._stepping = False, None

        self._optimizer_hook_handles = register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)


class _Uncounted:
    """A block in which tensors are not counted."""

    def __init__(self, tracker: MemoryTracker) -> None:
        self._tracker = tracker

    def __enter__(self) -> None:
        self._tracker._propagating += 1

    def __exit__(self, *_: Any) -> None:
        self._tracker._propagating -= 1
