"""Sums of gradients over the lanes and context-parallel ranks of each module."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from mimo_role.errors import AxisError, GradientError, MimoError
from mimo_role.groups.families import EMBEDDING
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology
from mimo_role.training.comparison import Comparison, digest_of
from mimo_role.training.flat_sums import BUCKET_BYTES, FlatSums
from mimo_role.training.parameters import (
    Modules,
    Place,
    check_dense,
    each_owned_parameter,
    local_part,
    marks_of,
    place_gradients,
    place_of,
    placed,
)
from mimo_role.training.replicas import EXPERT_LANES, LANES, Marks, Replicas, replicas_of

Axes: TypeAlias = tuple[str, ...]


@dataclass(frozen=True)
class _Summand:
    """A parameter whose gradient is summed."""

    name: str
    parameter: nn.Parameter
    axes: Axes
    """Over which; empty if a wrapper has done it."""
    is_expert: bool
    shared_embedding: bool
    dtype: torch.dtype
    """The gradient's."""

    @property
    def form(self) -> str:
        """What the ranks of a group have to agree on, but for the name."""
        local = local_part(self.parameter)
        # A wrapper's ranks may have parts of unlike sizes.
        shape = local.shape if self.axes else self.parameter.shape
        return f"{list(shape)} {self.dtype} on {local.device.type}, along {'_'.join(self.axes) or 'no axis'}"


@dataclass(frozen=True)
class _Family:
    """Parameters of one module whose gradients are summed over ranks of one group, which agree on them."""

    module: str
    group: dist.ProcessGroup
    summands: list[_Summand]
    forms: list[str]


class GradientSummer:
    """Adds up the gradients of all modules of a rank, each over its own ranks."""

    def __init__(
        self,
        topology: Topology,
        rank: int,
        device: torch.device,
        check_module: Callable[[str], object],
        group_of: Callable[..., dist.ProcessGroup],
        *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """
        Args:
            topology: the world.
            rank: this process's.
            device: for the tensors of collectives.
            check_module: raises a `MimoError` for the name of a module that this rank does not run.
            group_of: this rank's group of a module along some axes; raises an `AxisError` if there is none.
            bucket_bytes: the size of a flat buffer.
        """
        self._topology = topology
        self._modules = topology.modules_of(rank)
        self._device = device
        self._check_module = check_module
        self._group_of = group_of
        self._bucket_bytes = bucket_bytes
        # A mesh of thousands of ranks is searched once, not for every parameter at every step.
        self._replicas: dict[tuple[str, Marks, Place | None], Replicas] = {}

    @torch.no_grad()
    def sum(self, modules: Modules) -> None:
        """`RoleContext.sum_gradients`, which documents the arguments. Collective over the ranks of each module's lanes."""
        place_gradients(modules)
        summands: dict[str, list[_Summand]] = {}
        error: MimoError | None = None
        try:
            summands = self._collect(modules)
        except MimoError as own:
            error = own  # raised after the comparisons, in which the other ranks wait for this one
        error = self._sum(list(self._lanes(summands)), error)
        error = self._sum(list(self._ends(summands)), error)
        if error is not None:
            raise error

    def _collect(self, modules: Modules) -> dict[str, list[_Summand]]:
        """By module, its parameters that are trained, each once.

        Raises:
            MimoError: a module or a gradient that cannot be summed.
        """
        for name, module in modules.items():
            self._check_module(name)
            _check_unwrapped(name, module)
        found: dict[str, list[_Summand]] = {name: [] for name in self._modules}
        for module_name, name, parameter in each_owned_parameter(self._topology, modules):
            if parameter.requires_grad:
                found[module_name].append(self._summand(module_name, name, parameter))
        return found

    def _summand(self, module: str, name: str, parameter: nn.Parameter) -> _Summand:
        gradient, marks, place = parameter.grad, marks_of(parameter), place_of(parameter)
        dtype = parameter.grad_dtype or parameter.dtype
        if gradient is not None:
            check_dense(name, gradient)
            if (gradient.dtype, gradient.shape, place_of(gradient)) != (dtype, parameter.shape, place):
                raise GradientError(
                    f"{name}: its gradient is {_described(gradient)}, but the parameter is {_described(parameter)}; give it "
                    f"the same shape, grad_dtype and placements"
                )
        key = (module, marks, place)
        try:
            if key not in self._replicas:
                self._replicas[key] = replicas_of(self._topology, module, marks, placed(place))
            if marks.shared_embedding and self._topology.grids[module].axis_size("pp") > 1:
                self._group_of(module, EMBEDDING)
        except (AxisError, GradientError) as error:
            raise type(error)(f"{name}: {error}") from None
        found = self._replicas[key]
        return _Summand(name, parameter, found.lanes, found.is_expert, marks.shared_embedding, dtype)

    def _lanes(self, summands: dict[str, list[_Summand]]) -> Iterator[_Family]:
        for module in self._modules:
            grid, experts = self._topology.grids[module], self._topology.expert_grids.get(module)
            views: list[tuple[bool, RankGrid | None, Axes]] = [(False, grid, LANES), (True, experts, EXPERT_LANES)]
            for is_expert, view, lanes in views:
                axes = [axis for axis in lanes if view is not None and axis in view.dim_names and view.axis_size(axis) > 1]
                if axes:
                    own = [summand for summand in summands.get(module, ()) if summand.is_expert == is_expert]
                    forms = [f"{summand.name} {summand.form}" for summand in own]
                    yield _Family(module, self._group_of(module, *axes), own, forms)

    def _ends(self, summands: dict[str, list[_Summand]]) -> Iterator[_Family]:
        """The embeddings that the first and last stage share."""
        for module in self._modules:
            if self._topology.grids[module].axis_size("pp") == 1:
                continue
            try:
                group = self._group_of(module, EMBEDDING)
            except AxisError:
                continue  # no group was asked for
            if group.size() > 1:
                shared = [summand for summand in summands.get(module, ()) if summand.shared_embedding]
                own = [replace(summand, axes=(EMBEDDING,)) for summand in shared]
                yield _Family(module, group, own, [summand.form for summand in own])

    def _sum(self, families: Sequence[_Family], error: MimoError | None) -> MimoError | None:
        """Add up over the groups whose ranks agree, all at the same time. The error of this rank or of one of its groups."""
        started = [
            Comparison(
                [digest_of(family.forms), digest_of(str(summand.parameter.grad is None) for summand in family.summands)],
                family.group,
                self._device,
                failed=error is not None,
            )
            for family in families
        ]
        sums = FlatSums(self._bucket_bytes)
        for family, comparison in zip(families, started, strict=True):
            failed, (same_forms, same_gradients) = comparison.result()
            if failed:
                error = error or GradientError("sum_gradients failed on other ranks; their errors name the cause")
            elif not same_forms:
                mismatch = _mismatch(family)
                error = error or mismatch
            else:
                self._start(family, sums, all_have_the_same=same_gradients)
        sums.finish()
        return error

    def _start(self, family: _Family, sums: FlatSums, *, all_have_the_same: bool) -> None:
        present = [summand.parameter.grad is not None for summand in family.summands]
        if not all_have_the_same:
            flags = torch.tensor(present, dtype=torch.uint8, device=self._device)
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=family.group)
            present = flags.bool().tolist()
        gradients: dict[tuple[Axes, torch.dtype, str], list[torch.Tensor]] = {}
        for summand, is_present in zip(family.summands, present, strict=True):
            if is_present and summand.axes:
                gradient = _local_gradient(summand)
                gradients.setdefault((summand.axes, summand.dtype, gradient.device.type), []).append(gradient)
        for (axes, _, _), tensors in gradients.items():
            sums.start(tensors, self._group_of(family.module, *axes))


def _local_gradient(summand: _Summand) -> torch.Tensor:
    """This rank's part of a gradient; zeros from now on, if there was none."""
    parameter = summand.parameter
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=summand.dtype)
    return local_part(parameter.grad)


def _described(tensor: torch.Tensor) -> str:
    mesh = f" on {place}" if (place := place_of(tensor)) is not None else ""
    return f"{list(tensor.shape)} {tensor.dtype}{mesh}"


def _mismatch(family: _Family) -> GradientError:
    """Which parameters differ. Collective over the family's group."""
    everyone: list[list[str]] = [[] for _ in range(family.group.size())]
    dist.all_gather_object(everyone, family.forms, group=family.group)
    ranks = dist.get_process_group_ranks(family.group)
    at = next(place for place, forms in enumerate(everyone) if forms != everyone[0])
    one, other = next(pair for pair in zip_longest(everyone[0], everyone[at], fillvalue="nothing") if pair[0] != pair[1])
    return GradientError(
        f"sum_gradients: ranks {ranks[0]} and {ranks[at]} have different parameters of {family.module!r} to sum: {one!r} and "
        f"{other!r}; build and freeze the same ones, in the same order, on all of them"
    )


def _check_unwrapped(name: str, module: nn.Module) -> None:
    """
    Raises:
        GradientError: a part of the module is wrapped in something that reduces gradients by itself, not in FSDP2.
    """
    for part, wrapper in module.named_modules(prefix=name):
        reduces = callable(getattr(type(wrapper), "no_sync", None))
        if reduces and any(parameter.requires_grad for parameter in wrapper.parameters()):
            raise GradientError(
                f"{part}: {type(wrapper).__name__} reduces its gradients by itself; leave it out of sum_gradients (docs/guides/"
                f"numbers.md has its mean and sum)"
            )
