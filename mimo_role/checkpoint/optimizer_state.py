"""The state of optimizers by the names of parameters, whichever groups they are in."""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from torch.optim import Optimizer

from mimo_role.errors import CheckpointError

PREFIX = "optimizer/"
Settings = dict[str, Any]
Optimizers = Optimizer | Iterable[Optimizer] | None

_HOW_NOT_WHAT = {"params", "foreach", "fused", "capturable", "differentiable"}
"""Settings that choose an implementation, which is this job's affair, and the parameters themselves."""


class Slot(NamedTuple):
    """One value of an optimizer's state: `holder[key]`."""

    parameter: str
    """The parameter's name."""
    name: str
    """In the checkpoint: `optimizer/language.head.weight/exp_avg`."""
    holder: MutableMapping[Any, Any]
    key: Any


class NamedOptimizers:
    """This rank's optimizers, with the names of their parameters."""

    def __init__(self, optimizers: Optimizers, root: nn.ModuleDict, names: Mapping[nn.Parameter, list[str]]) -> None:
        """
        Raises:
            CheckpointError: a parameter is in no module, or in two optimizers.
        """
        given = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers or [])
        self.given = bool(given)
        self._optimizers = [each for each in given if any(group["params"] for group in each.param_groups)]
        self._root = root
        self._names = names
        self._check()

    def _check(self) -> None:
        seen = set()
        for _, group in self._groups():
            for parameter in group["params"]:
                if parameter not in self._names:
                    shape = tuple(parameter.shape)
                    raise CheckpointError(f"an optimizer has a parameter of shape {shape} that is in none of the modules")
                if parameter in seen:
                    raise CheckpointError(f"{self._names[parameter][0]} is a parameter of two optimizers")
                seen.add(parameter)

    def _groups(self) -> Iterator[tuple[Optimizer, Settings]]:
        return ((optimizer, group) for optimizer in self._optimizers for group in optimizer.param_groups)

    def slots(self) -> Iterator[Slot]:
        """All values of all states. A parameter with several names has its state under each."""
        for optimizer, group in self._groups():
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                for name in self._names[parameter]:
                    yield from _slots(name, f"{PREFIX}{name}", state)

    def begin(self) -> None:
        """Give every parameter a state to load into. Gradients are set to `None`."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            optimizer.state.clear()
            # Creates the states, by a step with gradients of 0 at a learning rate of 0.
            get_optimizer_state_dict(self._root, optimizer, options=StateDictOptions(strict=False))

    def forget(self, parameters: set[str]) -> None:
        """Remove the states of parameters: the optimizer begins them at its next step."""
        for optimizer, group in self._groups():
            for parameter in group["params"]:
                if parameters.intersection(self._names[parameter]):
                    optimizer.state.pop(parameter, None)

    def settings(self) -> dict[str, Settings]:
        """What each parameter's group is set to: `lr`, `betas`, `weight_decay` and so on."""
        found: dict[str, Settings] = {}
        for _, group in self._groups():
            kept = {key: _plain(value) for key, value in group.items() if key not in _HOW_NOT_WHAT}
            kept = {key: value for key, value in kept.items() if _is_plain(value)}
            found.update((name, kept) for parameter in group["params"] for name in self._names[parameter])
        return found

    def restore_settings(self, saved: Mapping[str, Settings]) -> None:
        """Set every group to what its parameters were saved with.

        Raises:
            CheckpointError: parameters of one group were saved with different settings.
        """
        for _, group in self._groups():
            names = [name for parameter in group["params"] for name in self._names[parameter] if name in saved]
            for name in names:
                if saved[name] != saved[names[0]]:
                    raise CheckpointError(
                        f"{names[0]} and {name} are in one group of the optimizer, but were saved with different settings: "
                        f"{_difference(saved[names[0]], saved[name])}; divide the parameters into groups as before"
                    )
            for key, value in saved[names[0]].items() if names else ():
                if isinstance(group.get(key), torch.Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = value


def _slots(parameter: str, prefix: str, state: MutableMapping[Any, Any]) -> Iterator[Slot]:
    for key, value in state.items():
        if isinstance(value, MutableMapping):
            yield from _slots(parameter, f"{prefix}/{key}", value)
        elif value is not None:
            yield Slot(parameter, f"{prefix}/{key}", state, key)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _difference(one: Settings, other: Settings) -> str:
    keys: Sequence[str] = sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))
    return ", ".join(f"{key}={one.get(key)} and {other.get(key)}" for key in keys)
