"""Which module runs, by its path from the outermost one that was called."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.weak import WeakIdKeyDictionary

OUTSIDE = "(outside modules)"
BACKWARD = "(backward)"


class ModulePaths:
    """In place of torch's `ModTracker`, whose hooks on gradients fail in pipelines that call `torch.autograd.grad`.

    A backward pass has no modules, other than those that activation checkpointing runs again.
    """

    def __init__(self, on_first_call: Callable[[nn.Module], None]) -> None:
        """`on_first_call`: called before a module runs for the first time that is not part of one that has run."""
        self._on_first_call = on_first_call
        self._paths: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._running: list[str] = []
        self._handles: list[Any] = []

    @property
    def is_bw(self) -> bool:
        """Whether a backward pass runs in this thread."""
        return bool(torch._C._current_graph_task_id() != -1)

    @property
    def is_recomputing(self) -> bool:
        """Whether a module runs within a backward pass."""
        return self.is_bw and bool(self._running)

    @property
    def current(self) -> str:
        """The path of the innermost module that runs."""
        if self._running:
            return self._running[-1]
        return BACKWARD if self.is_bw else OUTSIDE

    def name(self, module: nn.Module, path: str) -> None:
        """Set the path of a module."""
        self._paths[module] = path

    def register_user_hooks(self, *_: Any) -> None:
        """Nothing: torch's tracker of memory registers hooks of its own."""

    clear_user_hooks = register_user_hooks

    def __enter__(self) -> "ModulePaths":
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _enter_module(self, module: nn.Module, _inputs: Any) -> None:
        if module not in self._paths:
            self._on_first_call(module)
        self._running.append(self._paths[module])

    def _leave_module(self, *_: Any) -> None:
        if self._running:
            self._running.pop()
