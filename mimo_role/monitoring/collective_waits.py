"""How long this rank waits for collectives on the CPU.

Ranks that share a collective are all as slow as the slowest of them; only the waits show which one that is.

torch 2.13 has no hook for them. Its completion hooks exist for NCCL only, and gloo's flight recorder has when a collective was
created and no time at which it was complete; a dump of 2,000 entries takes 40 ms. So the methods by which Python code starts
collectives, and those by which it waits for them, are wrapped. Collectives that start in C++ are missing: those of
DistributedDataParallel. What is private is used in this file only; `tests/mimo_role/monitoring/test_collective_waits.py` fails
when it changes.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as functional
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.monitoring.recorder import Recorder
from mimo_role.monitoring.records import Flag
from mimo_role.monitoring.ring import What

_METHODS = (
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "allgather_coalesced",
    "allgather_into_tensor_coalesced",
    "_allgather_base",
    "all_gather_single",
    "all_gather_single_coalesced",
    "reduce_scatter",
    "_reduce_scatter_base",
    "reduce_scatter_single",
    "reduce_scatter_single_coalesced",
    "reduce_scatter_tensor_coalesced",
    "alltoall",
    "alltoall_base",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "gather",
    "reduce",
    "scatter",
)
"""Of `ProcessGroup`: they return a `Work`. Not every release has all of them."""
_FUNCTIONS = (
    "all_reduce",
    "all_gather_single",
    "all_gather_tensor",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "all_to_all_single",
)
"""Of `_functional_collectives`, by which DTensors communicate: they return a tensor that waits when it is used."""
_MOST_RUNNING = 1024
"""Collectives that were started and not waited for; those of a script that never waits are forgotten."""
_WORLD = "default_pg"
_FAILED = int(Flag.FAILED)


class CollectiveWaits:
    """Records the waits of all threads of this process as spans with the name of the group."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._works: dict[int, tuple[weakref.ref[dist.Work], str]] = {}
        """The groups of collectives that run, by the id of the `Work` that is waited for. Another may get it later."""
        self._storages: dict[int, str] = {}
        """The same, by the storage of the result."""
        self._starting = _Starting()
        self._find = cache(self._about)
        self._replaced: list[tuple[Any, str, Any, Any]] = []
        """Owner, name, what was there before and what is there instead."""

    def install(self) -> None:
        """Begin to record. One object at a time."""
        for name in _METHODS:
            self._replace(dist.ProcessGroup, name, self._starting_work)
        self._replace(dist.Work, "wait", self._waiting_for_work)
        for name in _FUNCTIONS:
            self._replace(functional, name, self._starting_tensor)
        self._replace(functional, "wait_tensor", self._waiting_for_tensor)

    def remove(self) -> None:
        """Leave torch as it was before."""
        for owner, name, before, ours in reversed(self._replaced):
            if vars(owner)[name] is ours:
                setattr(owner, name, before)
        self._replaced.clear()

    def _replace(self, owner: Any, name: str, wrapped: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        # Of a class the descriptor, not what it returns.
        before = vars(owner).get(name)
        if before is not None:
            ours = functools.wraps(getattr(owner, name))(_named(wrapped(getattr(owner, name)), name))
            setattr(owner, name, ours)
            self._replaced.append((owner, name, before, ours))

    def _about(self, name: str) -> What:
        return self._recorder.collective("world" if name == _WORLD else name)

    def _starting_work(self, start: Callable[..., Any]) -> Callable[..., Any]:
        works = self._works

        def start_and_note(group: dist.ProcessGroup, *args: Any, **kwargs: Any) -> Any:
            work = start(group, *args, **kwargs)
            if len(works) >= _MOST_RUNNING:
                works.clear()
            works[id(work)] = weakref.ref(work), group.group_desc
            return work

        return start_and_note

    def _waiting_for_work(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        works, recorder, find = self._works, self._recorder, self._find

        def wait_and_record(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
            known = works.pop(id(work), None)
            if known is None or known[0]() is not work:  # a message, or a second wait
                return wait(work, *args, **kwargs)
            about, flags = find(known[1]), _FAILED
            begin_ns = recorder.begin_wait(about)
            try:
                found = wait(work, *args, **kwargs)
                flags = 0
                return found
            finally:
                recorder.end_wait(about, begin_ns, flags)

        return wait_and_record

    def _starting_tensor(self, start: Callable[..., Any]) -> Callable[..., Any]:
        storages, starting = self._storages, self._starting
        place = list(inspect.signature(start).parameters).index("group")

        def start_and_note(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling():
                return start(*args, **kwargs)
            group = _group_of(kwargs["group"] if "group" in kwargs else args[place])
            if group is None:
                return start(*args, **kwargs)
            outer, starting.group = starting.group, group.group_desc
            try:
                result = start(*args, **kwargs)
            finally:
                starting.group = outer
            if isinstance(result, functional.AsyncCollectiveTensor) and type(result.elem) is torch.Tensor:
                if len(storages) >= _MOST_RUNNING:
                    storages.clear()
                storages[result.elem.untyped_storage().data_ptr()] = group.group_desc
            return result

        return start_and_note

    def _waiting_for_tensor(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        storages, starting, recorder, find = self._storages, self._starting, self._recorder, self._find

        def wait_and_record(tensor: torch.Tensor) -> Any:
            if torch.compiler.is_compiling() or type(tensor) is not torch.Tensor:
                return wait(tensor)
            # Of a gather along another dimension than the first, the function that starts it waits for it, too.
            name = storages.pop(tensor.untyped_storage().data_ptr(), starting.group)
            if name is None:
                return wait(tensor)
            about, flags = find(name), _FAILED
            begin_ns = recorder.begin_wait(about)
            try:
                found = wait(tensor)
                flags = 0
                return found
            finally:
                recorder.end_wait(about, begin_ns, flags)

        return wait_and_record


class _Starting(threading.local):
    """What a thread is doing."""

    group: str | None = None
    """That of the collective that it is starting by a function of `_functional_collectives`."""


def _named(function: Any, name: str) -> Callable[..., Any]:
    """The function with this name in its code.

    A Python class that is derived from one of C++ may call the base class in a method of its own. pybind11 knows such a call,
    which must not be passed to the derived class again, by the name of the calling code and by its first argument.
    """
    function.__code__ = function.__code__.replace(co_name=name)
    renamed: Callable[..., Any] = function
    return renamed


def _group_of(argument: Any) -> dist.ProcessGroup | None:
    """The group that a function of `_functional_collectives` was given: itself, a mesh, or a mesh and one of its axes."""
    if isinstance(argument, dist.ProcessGroup):
        return argument
    if isinstance(argument, DeviceMesh):
        return argument.get_group()
    if isinstance(argument, tuple) and len(argument) == 2 and isinstance(argument[0], DeviceMesh):
        return argument[0].get_group(argument[1])
    return None
