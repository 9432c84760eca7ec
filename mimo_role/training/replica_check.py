"""A comparison of the ranks that should have equal parameters and gradients."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from mimo_role.errors import AxisError, GradientError, MimoError, ReplicaError
from mimo_role.groups.families import EMBEDDING
from mimo_role.topology.topology import Topology
from mimo_role.training.bit_hash import bit_hash
from mimo_role.training.comparison import Comparison, digest_of
from mimo_role.training.parameters import Modules, check_dense, each_owned_parameter, local_part, marks_of, place_of, placed
from mimo_role.training.replicas import replicas_of

_DESCRIBED = 4
"""Differences that an error describes, and that each rank reports."""


class _Item(NamedTuple):
    """A parameter or a gradient, and the axis along which ranks have replicas of it."""

    module: str
    axis: str
    name: str
    digest: str


class _Difference(NamedTuple):
    """An item that is not equal on all ranks of a row."""

    name: str
    axis: str
    ranks: tuple[tuple[int, ...], ...]
    """Those with equal bits together."""


class ReplicaCheck:
    """Compares the replicas of all modules of a world bit by bit."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        check_module: Callable[[str], object],
        group_of: Callable[..., dist.ProcessGroup],
    ) -> None:
        """The arguments are those of `GradientSummer`."""
        self._topology = topology
        self._modules = topology.modules_of(rank)
        self._device = device
        self._check_module = check_module
        self._group_of = group_of

    @torch.no_grad()
    def check(self, modules: Modules, *, gradients: bool) -> None:
        """`RoleContext.check_replicas`, which documents the arguments. Collective over the world."""
        items: list[_Item] = []
        error: MimoError | None = None
        try:
            for module in modules:
                self._check_module(module)
            items = list(self._items(modules, gradients=gradients))
        except MimoError as own:
            error = own  # raised after the comparisons, in which the other ranks wait for this one
        differences = self._compare(items, error)
        state = torch.tensor([error is not None, bool(differences)], dtype=torch.int64, device=self._device)
        dist.all_reduce(state, dist.ReduceOp.MAX)
        failed, differ = state.tolist()
        if error is not None:
            raise error
        if failed:
            raise ReplicaError("check_replicas failed on other ranks; their errors name the cause")
        if differ:
            raise _error(differences)

    def _items(self, modules: Modules, *, gradients: bool) -> Iterator[_Item]:
        """
        Raises:
            MimoError: a module or a tensor that cannot be compared.
        """
        tensors = list(self._tensors(modules, gradients=gradients))
        hashes = iter(self._hashes([tensor for *_, tensor in tensors if tensor is not None]))
        for module, axes, name, tensor in tensors:
            digest = "none" if tensor is None else f"{next(hashes)} {list(tensor.shape)} {tensor.dtype}"
            yield from (_Item(module, axis, name, digest) for axis in axes)

    def _tensors(self, modules: Modules, *, gradients: bool) -> Iterator[tuple[str, list[str], str, torch.Tensor | None]]:
        """Module, axes of replicas, name, and this rank's part."""
        for module, name, parameter in each_owned_parameter(self._topology, modules):
            yield module, self._axes(module, name, parameter, parameter), name, local_part(parameter)
            if gradients and parameter.requires_grad:
                gradient = parameter.grad
                if gradient is not None:
                    check_dense(name, gradient)
                axes = self._axes(module, name, parameter, parameter if gradient is None else gradient)
                yield module, axes, f"the gradient of {name}", None if gradient is None else local_part(gradient)

    def _axes(self, module: str, name: str, parameter: nn.Parameter, tensor: torch.Tensor) -> list[str]:
        marks = marks_of(parameter)
        try:
            found = replicas_of(self._topology, module, marks, placed(place_of(tensor))).axes
        except GradientError as error:
            raise GradientError(f"{name}: {error}") from None
        return [*found, EMBEDDING] if marks.shared_embedding else list(found)

    def _hashes(self, tensors: Sequence[torch.Tensor]) -> list[int]:
        found = [bit_hash(tensor).to(self._device) for tensor in tensors]
        return list(map(int, torch.stack(found).tolist())) if found else []

    def _rows(self) -> Iterator[tuple[str, str, dist.ProcessGroup]]:
        """Module, axis and group of each row of this rank in which replicas may be."""
        for module in self._modules:
            views = (self._topology.grids[module], self._topology.expert_grids.get(module))
            for axis, size in (each for view in views if view for each in zip(view.dim_names, view.shape, strict=True)):
                if axis != "pp" and size > 1:
                    yield module, axis, self._group_of(module, axis)
            try:
                ends = self._group_of(module, EMBEDDING)
            except AxisError:
                continue  # no group was asked for
            if ends.size() > 1:
                yield module, EMBEDDING, ends

    def _compare(self, items: Sequence[_Item], error: MimoError | None) -> list[_Difference]:
        """The differences along all rows of this rank. Collective over them, all at the same time."""
        started = []
        for module, axis, group in self._rows():
            digests = _digests(module, axis, items)
            number = digest_of(f"{name} {digest}" for name, digest in digests.items())
            started.append((axis, group, digests, Comparison([number], group, self._device, failed=error is not None)))
        found = []
        for axis, group, digests, comparison in started:
            failed, (are_equal,) = comparison.result()
            if not failed and not are_equal:
                found += _differences(axis, group, digests)
        return found


def _digests(module: str, axis: str, items: Sequence[_Item]) -> dict[str, str]:
    """By name, the digests of what ranks along an axis have replicas of; names of tied embeddings differ between stages."""
    own = [item for item in items if (item.module, item.axis) == (module, axis)]
    if axis != EMBEDDING:
        return {item.name: item.digest for item in own}
    return {f"{module}: item {number} of the tied embeddings": item.digest for number, item in enumerate(own)}


def _differences(axis: str, group: dist.ProcessGroup, digests: dict[str, str]) -> list[_Difference]:
    """Which ranks of a group differ, and in what. Collective over the group."""
    everyone: list[dict[str, str]] = [{} for _ in range(group.size())]
    dist.all_gather_object(everyone, digests, group=group)
    ranks = dist.get_process_group_ranks(group)
    found = []
    for name in dict.fromkeys(name for own in everyone for name in own):
        alike: dict[str | None, list[int]] = {}
        for rank, own in zip(ranks, everyone, strict=True):
            alike.setdefault(own.get(name), []).append(rank)
        if len(alike) > 1:
            found.append(_Difference(name, axis, tuple(map(tuple, alike.values()))))
    return found


def _error(differences: Sequence[_Difference]) -> ReplicaError:
    """The differences of all ranks. Collective over the world."""
    everyone: list[tuple[int, Sequence[_Difference]]] = [(0, ())] * dist.get_world_size()
    dist.all_gather_object(everyone, (len(differences), differences[:_DESCRIBED]))
    found = list(dict.fromkeys(difference for _, own in everyone for difference in own))
    described = [
        f"{name} differs along {axis} between {' and '.join(_named(alike) for alike in ranks)}"
        for name, axis, ranks in found[:_DESCRIBED]
    ]
    more = len(found) > _DESCRIBED or any(count > _DESCRIBED for count, _ in everyone)
    return ReplicaError(
        f"replicas are not equal: {'; '.join(described)}{'; and others' if more else ''}. Gradients are equal after "
        f"ctx.sum_gradients; a plain tensor that is a shard has the attribute tensor_model_parallel (docs/guides/numbers.md)"
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
