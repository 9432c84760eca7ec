"""Data-parallel wrappers in a schedule: gradients add up over the micro-batches of a step and are reduced once.

With several micro-batches in flight no wrapper reduces at the right moment by itself:

- DistributedDataParallel decides in the forward. A forward outside `no_sync()` prepares its reducer, which then reduces at the
  next gradient of each parameter, though it belongs to an earlier micro-batch. So all forwards run in `no_sync()`, and at the
  end of the step the reducer is prepared (as in `torch.distributed.pipelining`) and gets a separate backward.
- FSDP2 decides in the backward, by flags that are set before it.
- Any other module with a `no_sync()`, such as Megatron-Core's DistributedDataParallel, decides in the backward.
"""

import gc
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mimo_role.errors import ScheduleError

Modules: TypeAlias = Mapping[str, nn.Module | Iterable[nn.Module]]


class GradientSync:
    """The data-parallel wrappers that a schedule drives: those in its `modules`, and others that its `run` calls."""

    def __init__(self, modules: Modules, known: Collection[str], trained: Collection[str]) -> None:
        """
        Args:
            modules: what this rank runs of each module, wrapped or not.
            known: the modules of the topology.
            trained: those of them that this rank runs and that are not frozen.

        Raises:
            ScheduleError: the name of an unknown module, or a value that is not one `torch.nn.Module` or several.
        """
        for name in modules:
            if name not in known:
                raise ScheduleError(f"modules: no module {name!r}; there are {', '.join(known)}")
        self.roots = {name: _roots(name, modules[name]) for name in known if name in modules}
        """What was given of each module."""
        self._given = {name: found for name, found in self.roots.items() if name in trained}
        self._others: list[ref[nn.Module]] | None = None
        self._reduced: WeakKeyDictionary[nn.Module, None] = WeakKeyDictionary()
        self._step: StepSync | None = None

    @contextmanager
    def of_step(self, micro_batches: int, *, sync: bool, backward: bool) -> "Iterator[StepSync]":
        """Drive the wrappers during one step, and restore their flags afterwards. Without backwards nothing is driven.

        Raises:
            ScheduleError: a given wrapper that cannot be driven over several micro-batches.
        """
        given = self._given if backward else {}
        accumulates = "" if micro_batches == 1 and sync else f"{micro_batches} micro-batches, sync_gradients={sync}"
        with ExitStack() as undo:
            step = StepSync(given, self._all_others() if backward else [], self._reduced, accumulates, undo, sync=sync)
            undo.callback(setattr, self, "_step", None)
            self._step = step
            # Hooks that remain would prevent modules from being pickled.
            for root in step.roots:
                undo.callback(root.register_forward_pre_hook(_uncompiled(self._root_is_called)).remove)
            for wrapper in step.others:
                undo.callback(wrapper.register_forward_pre_hook(_uncompiled(self._other_is_called)).remove)
            yield step

    def _all_others(self) -> list[nn.Module]:
        if self._others is None:
            self._others = [ref(wrapper) for wrapper in _all_wrappers()]
        return [wrapper for found in self._others if (wrapper := found()) is not None]

    # A compiled module may keep calling the hooks of the step in which it was compiled, so they are not the step's own.
    def _root_is_called(self, root: nn.Module, _: Any) -> None:
        if self._step is not None:
            self._step.root_is_called(root)

    def _other_is_called(self, wrapper: nn.Module, _: Any) -> None:
        if self._step is not None and torch.is_grad_enabled():
            self._step.other_is_called(wrapper)


def _uncompiled(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that dynamo does not compile. Dynamo takes seconds to import; if it is not loaded, nothing is compiled."""
    return torch.compiler.disable(hook) if "torch._dynamo" in sys.modules else hook  # type: ignore[no-untyped-call]


class StepSync:
    """Drives the wrappers during one step."""

    def __init__(
        self,
        given: Mapping[str, list[nn.Module]],
        others: Sequence[nn.Module],
        reduced: "WeakKeyDictionary[nn.Module, None]",
        accumulates: str,
        undo: ExitStack,
        *,
        sync: bool,
    ) -> None:
        """
        Args:
            given: the roots in the schedule's `modules`.
            others: wrappers in this process, given or not; those that a forward calls are driven too.
            reduced: those of the others that any step has reduced. Each later step reduces them, also on a lane that does not
                call them in it, since the other lanes wait for it.
            accumulates: the step, for messages; empty if wrappers need not be driven.
            undo: closed at the end of the step.
            sync: whether gradients are reduced at the end of the step.
        """
        self._given = given
        self._reduced = reduced
        self._accumulates = accumulates
        self._undo = undo
        self._sync = sync
        self._module = ""
        """The module whose forward runs."""
        self._trains = False
        """Whether that forward has a backward."""
        self._drivers: dict[nn.Module, _Driver] = {}
        self._driven_by_script: set[nn.Module] = set()
        self._roots_called: set[nn.Module] = set()
        self._others_called: set[tuple[nn.Module, str]] = set()
        for name, roots in given.items():
            for root in roots:
                self._drive(root, name)
        self.roots = {root for roots in given.values() for root in roots}
        self.others = dict.fromkeys(wrapper for wrapper in others if wrapper not in self._drivers)

    def before_forward(self, module: str, *, trains: bool) -> None:
        """Call it before each forward of a module; `trains`: whether it has a backward."""
        self._module, self._trains = module, trains
        self._roots_called.clear()

    def check_outputs(self, module: str, outputs: Collection[torch.Tensor]) -> None:
        """Refuse the outputs of a forward through which the module would not train.

        Raises:
            ScheduleError: none needs a gradient, though the forward called a given module that has parameters to train.
        """
        floats = [output for output in outputs if output.is_floating_point() and output.numel()]
        if not floats or any(output.requires_grad for output in floats):
            return
        called = self._roots_called.intersection(self._given.get(module, ()))
        if any(parameter.requires_grad for root in called for parameter in root.parameters()):
            raise ScheduleError(
                f"run({module!r}, ...) returned a tensor that needs no gradient, though modules[{module!r}] has parameters to "
                f"train; return it without detach() or no_grad(), or set requires_grad_(False) on what does not train"
            )

    def before_backward(self, module: str, *, is_last: bool) -> None:
        """Call it before each backward of a module."""
        if is_last:
            for driver in self._drivers.values():
                driver.pending.discard(module)
                if not driver.pending:
                    driver.before_last_backward(sync=self._sync)

    def reduce(self) -> None:
        """Reduce what the backwards have not reduced. Call it on all ranks after all transfers of bridges have completed."""
        if not self._sync:
            return
        for wrapper, driver in self._drivers.items():
            if wrapper in self.others:
                self._reduced[wrapper] = None
            else:
                driver.reduce()
        for wrapper in self._reduced:  # in the order of their first step, which is the same on all lanes
            if wrapper in self._drivers or wrapper not in self._driven_by_script:
                _driver_of(wrapper).reduce()

    def root_is_called(self, root: nn.Module) -> None:
        """A forward calls a given root."""
        self._roots_called.add(root)

    def other_is_called(self, wrapper: nn.Module) -> None:
        """A forward calls one of the others."""
        if not self._trains:
            return
        call = wrapper, self._module
        if wrapper not in self._drivers and not getattr(wrapper, "require_backward_grad_sync", True):
            self._driven_by_script.add(wrapper)  # the script calls it in no_sync()
        elif call not in self._others_called:
            self._others_called.add(call)
            self._drive(*call)

    def _drive(self, root: nn.Module, name: str) -> None:
        """Drive the wrappers in `root`, a part of a module, until the end of the step."""
        for wrapper in root.modules():
            if wrapper not in self._drivers and _is_wrapper(wrapper):
                reason = _why_not_driven(wrapper)
                if reason and self._accumulates:
                    raise ScheduleError(f"module {name!r}: {reason}; this step has {self._accumulates}")
                if not reason:
                    self._drivers[wrapper] = _driver_of(wrapper)
                    self._drivers[wrapper].hold(self._undo)
            if wrapper in self._drivers:
                self._drivers[wrapper].pending.add(name)


class _Driver(ABC):
    """Drives one wrapper during one step."""

    def __init__(self) -> None:
        self.pending: set[str] = set()
        """Modules that use the wrapper and whose last backward has not run."""

    @abstractmethod
    def hold(self, undo: ExitStack) -> None:
        """Add up gradients without reduction until `undo` is closed."""

    @abstractmethod
    def before_last_backward(self, *, sync: bool) -> None:
        """With `sync`, reduce in the next backward, for wrappers that reduce in a backward."""

    @abstractmethod
    def reduce(self) -> None:
        """Reduce after the step, for wrappers that do not reduce in a backward."""


class _DdpDriver(_Driver):
    def __init__(self, ddp: DistributedDataParallel) -> None:
        super().__init__()
        self._ddp = ddp

    def hold(self, undo: ExitStack) -> None:
        undo.enter_context(self._ddp.no_sync())

    def before_last_backward(self, *, sync: bool) -> None:
        """Nothing: a reduction here would delay the gradients that the previous stage waits for."""

    def reduce(self) -> None:
        ddp = self._ddp
        trained = [parameter for parameter in ddp.parameters() if parameter.requires_grad]
        if not trained:
            return
        touched = _Touch.apply(*trained)  # type: ignore[no-untyped-call]
        ddp.reducer.prepare_for_backward([touched])
        touched.backward()
        # Usually called by DDP's forward. It checks that all parameters are reduced. The first time it also broadcasts the
        # order of the buckets; in a forward, a lane that calls its module later than the others would block them.
        try:
            ddp.reducer._rebuild_buckets()
        except RuntimeError as error:
            raise ScheduleError(
                "DistributedDataParallel did not reduce all its parameters: some were frozen after it was built; build it again"
            ) from error
        ddp.require_forward_param_sync = True  # the next step's first forward broadcasts the buffers


class _Fsdp2Driver(_Driver):
    def __init__(self, fsdp: Any) -> None:
        super().__init__()
        self._fsdp = fsdp

    def hold(self, undo: ExitStack) -> None:
        self._set(sync=False, is_last=False)
        undo.callback(self._set, sync=True, is_last=True)

    def before_last_backward(self, *, sync: bool) -> None:
        self._set(sync=sync, is_last=True)

    def reduce(self) -> None:
        """Reshard for the optimizer, also after `set_reshard_after_backward(False)`; the last backward has reduced."""
        self._fsdp.reshard()

    def _set(self, *, sync: bool, is_last: bool) -> None:
        self._fsdp.set_requires_gradient_sync(sync, recurse=False)
        self._fsdp.set_is_last_backward(is_last)


class _NoSyncDriver(_Driver):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self._module = module
        self._held = ExitStack()

    def hold(self, undo: ExitStack) -> None:
        self._held.enter_context(self._module.no_sync())
        undo.callback(self._held.close)

    def before_last_backward(self, *, sync: bool) -> None:
        if sync:
            self._held.close()

    def reduce(self) -> None:
        """Nothing: the last backward has started it; the script completes it, as by Megatron-Core's `finalize_model_grads`."""


class _Touch(torch.autograd.Function):
    """A backward without gradients: the hooks of every parameter run, and its gradient is unchanged."""

    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.count = len(parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: torch.Tensor) -> tuple[None, ...]:
        return (None,) * int(ctx.count)


def _roots(name: str, value: Any) -> list[nn.Module]:
    # A ModuleList is both, and counts as one module. A string would be iterated by letters.
    several = isinstance(value, Iterable) and not isinstance(value, nn.Module | str)
    found = list(value) if several else [value]
    for root in found:
        if not isinstance(root, nn.Module):
            raise ScheduleError(f"modules[{name!r}] has a {type(root).__name__}; it is a torch.nn.Module or several")
    return found


def _fsdp(name: str) -> type[Any] | None:
    """A class of `torch.distributed.fsdp`. It takes 0.5 s to import; if it is not loaded, nothing is sharded."""
    return getattr(sys.modules.get("torch.distributed.fsdp"), name, None)


def _is_fsdp(wrapper: nn.Module, name: str) -> bool:
    found = _fsdp(name)
    return found is not None and isinstance(wrapper, found)


def _all_wrappers() -> list[nn.Module]:
    """The instances of DDP and FSDP in this process.

    A hook on all modules would find those that a forward calls, but it slows down each module and torch.compile refuses it.
    """
    types: set[type] = set()
    left = [DistributedDataParallel, _fsdp("FSDPModule"), _fsdp("FullyShardedDataParallel")]
    while left:
        found = left.pop()
        if found is not None and found not in types:
            types.add(found)
            left.extend(found.__subclasses__())
    return [found for found in gc.get_objects() if type(found) in types]


def _is_wrapper(module: nn.Module) -> bool:
    return _is_fsdp(module, "FSDPModule") or callable(getattr(module, "no_sync", None))


def _why_not_driven(wrapper: nn.Module) -> str:
    """Why a wrapper cannot be driven, and what to use; empty if it can."""
    if _is_fsdp(wrapper, "FullyShardedDataParallel"):
        return "FullyShardedDataParallel is not driven over several micro-batches in flight; use fully_shard()"
    if isinstance(wrapper, DistributedDataParallel):
        if wrapper.static_graph:
            return "DistributedDataParallel reduces in its first backward with static_graph=True; leave that out"
        if wrapper.mixed_precision is not None:
            return "DistributedDataParallel casts parameters back only when it reduces with mixed_precision; use torch.autocast"
        if wrapper._use_python_reducer:
            return "DistributedDataParallel reduces only in compiled backwards with optimize_ddp='python_reducer'; use another"
        if wrapper._delay_all_reduce_params:
            return "DistributedDataParallel reduces in each backward with delay_all_reduce_named_params; leave that out"
    return ""


def _driver_of(wrapper: nn.Module) -> _Driver:
    if isinstance(wrapper, DistributedDataParallel):
        return _DdpDriver(wrapper)
    return _Fsdp2Driver(wrapper) if _is_fsdp(wrapper, "FSDPModule") else _NoSyncDriver(wrapper)
