"""Random numbers of one rank: a stream for each module that it runs."""

import math
import operator
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.device_mesh import DeviceMesh

from mimo_role.errors import AxisError, ContextError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.topology import Topology
from mimo_role.training.seeding import DIFFERENT_OVER, seed_of, stream_of

try:
    import numpy as np
except ImportError:  # torch works without
    np = None  # type: ignore[assignment]


class RandomStreams:
    """Random numbers of one rank. Made by `RoleContext.seed_everything`, which seeds all of them.

    The generators of the process - `random`, NumPy's global one, and torch's default ones - belong to one module: the language
    module if the rank runs it, otherwise the first module of its role. Code of another module on the same rank draws within
    `with streams.fork("vision")`, or from `streams.generator("vision")`.
    """

    def __init__(
        self, seed: int, topology: Topology, rank: int, device: torch.device, different_over: Collection[str] = DIFFERENT_OVER
    ) -> None:
        """
        Raises:
            AxisError: `different_over` names an unknown axis.
        """
        self.seed = operator.index(seed)
        self._topology = topology
        self._rank = rank
        self._device = device
        self._different_over = tuple(different_over)
        self.names: Mapping[str, str] = {name: self._stream(rank, name) for name in topology.modules_of(rank)}
        """The stream of each module: `{"vision": "vision.dp1", "language": "language"}`."""
        self.module = MIMO_LANGUAGE_MODULE_KEY if MIMO_LANGUAGE_MODULE_KEY in self.names else next(iter(self.names))
        """The module of the process's generators."""
        self._drawing = self.module
        self._waiting = {name: self._first_states(name) for name in self.names if name != self.module}
        self._generators = {name: torch.Generator(device).manual_seed(self._seed(name, "generator")) for name in self.names}
        self._seed_process()

    def generator(self, module: str) -> torch.Generator:
        """A generator for torch functions that take one, with a separate stream, on the context's device.

        Raises:
            AxisError: the rank does not run the module.
        """
        self._check(module)
        return self._generators[module]

    @contextmanager
    def fork(self, module: str) -> Iterator[None]:
        """Use a module's stream for torch's default generators within a block; it continues from the previous block.

        Dropout and initialization in the block do not change the other modules' streams, as with Megatron-Core's
        `CudaRNGStatesTracker.fork`. `random` and NumPy are not switched.

        Raises:
            AxisError: the rank does not run the module.
        """
        self._check(module)
        before = self._drawing
        self._draw_from(module)
        try:
            yield
        finally:
            self._draw_from(before)

    def rng_state(self) -> dict[str, Any]:
        """The state of every generator of this rank, as tensors, numbers and text in nested dictionaries."""
        states = {**self._waiting, self._drawing: self._default_states()}
        found: dict[str, Any] = {
            "place": self._place,
            "seed": self.seed,
            "python": _python_state(),
            "torch": {name: {kind: state.clone() for kind, state in states[name].items()} for name in self.names},
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
        }
        return found if np is None else found | {"numpy": _numpy_state()}

    def load_rng_state(self, state: Mapping[str, Any]) -> None:
        """Restore a state from `rng_state`.

        Raises:
            ContextError: it is of a rank with other streams or another kind of device.
        """
        if state["place"] != self._place:
            raise ContextError(
                f"the random state was saved by a rank that drew from {state['place']}; this one draws from {self._place}. "
                "In another layout, call seed_everything with a seed that has not been used"
            )
        self.seed = state["seed"]
        for name, generator in self._generators.items():
            generator.set_state(state["generators"][name])
        self._waiting = {name: dict(states) for name, states in state["torch"].items() if name != self._drawing}
        self._set_default_states(state["torch"][self._drawing])
        _set_python_state(state["python"])
        if np is not None and "numpy" in state:
            _set_numpy_state(state["numpy"])

    def state_dict(self) -> dict[str, Any]:
        """`rng_state` under this rank's name: torch.distributed.checkpoint saves one value per name for all ranks."""
        return {f"rank{self._rank}": self.rng_state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`; both are the interface `Stateful` of torch.distributed.checkpoint.

        Raises:
            ContextError: as `load_rng_state`.
        """
        self.load_rng_state(state_dict[f"rank{self._rank}"])

    def prepare_dtensor(self, mesh: DeviceMesh) -> None:
        """Use the current module's stream for DTensor's random operators on a CUDA mesh; on the CPU, only check.

        They offset torch's default generator by the index of each shard, so it must be equal on all ranks of the mesh. DTensor
        ensures that by a broadcast over the whole world at the first operator, which the ranks of other modules do not call;
        this initializes it without a broadcast. Call it before the first random DTensor is created.

        Raises:
            ContextError: the stream differs over the mesh's ranks.
        """
        names = {self._stream(rank, self._drawing) for rank in mesh.mesh.flatten().tolist()}
        if len(names) > 1:
            raise ContextError(
                f"DTensor needs equal random numbers on all ranks of a mesh, and {self._drawing!r} has {len(names)} streams on "
                f"this one; call seed_everything with different_over=() or ('pp',), not {self._different_over}"
            )
        if mesh.device_type == "cuda":
            from torch.distributed.tensor._random import manual_seed  # torch has no public name for it

            states = self._default_states()
            manual_seed(self._seed(self._drawing, "torch"), mesh)
            self._set_default_states(states)

    @property
    def _place(self) -> str:
        return f"{', '.join(self.names.values())} on {self._device.type}"

    def _stream(self, rank: int, module: str) -> str:
        return stream_of(self._topology, rank, module, self._different_over)

    def _seed(self, module: str, purpose: str) -> int:
        return seed_of(self.seed, self.names[module], purpose)

    def _check(self, module: str) -> None:
        if module not in self.names:
            raise AxisError(f"rank {self._rank} does not run {module!r}; it runs {', '.join(self.names)}")

    def _seed_process(self) -> None:
        torch.manual_seed(self._seed(self.module, "torch"))  # CUDA's too, when it is initialized
        random.seed(self._seed(self.module, "python"))
        if np is not None:
            np.random.seed(_words(self._seed(self.module, "numpy")))

    def _first_states(self, module: str) -> dict[str, torch.Tensor]:
        seed = self._seed(module, "torch")
        return {device.type: torch.Generator(device).manual_seed(seed).get_state() for device in self._devices}

    @property
    def _devices(self) -> list[torch.device]:
        return [torch.device("cpu"), *([self._device] if self._device.type == "cuda" else [])]

    def _draw_from(self, module: str) -> None:
        if module != self._drawing:
            self._waiting[self._drawing] = self._default_states()
            self._set_default_states(self._waiting.pop(module))
            self._drawing = module

    def _default_states(self) -> dict[str, torch.Tensor]:
        return {
            device.type: torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
            for device in self._devices
        }

    def _set_default_states(self, states: Mapping[str, torch.Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self._device)


def _words(seed: int) -> list[int]:
    """A seed for NumPy's legacy generator."""
    return [seed & 0xFFFFFFFF, seed >> 32]


def _python_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    return {"version": version, "words": torch.tensor(words), "gauss": math.nan if gauss is None else gauss}


def _set_python_state(state: Mapping[str, Any]) -> None:
    gauss = None if math.isnan(state["gauss"]) else state["gauss"]
    random.setstate((state["version"], tuple(state["words"].tolist()), gauss))


def _numpy_state() -> dict[str, Any]:
    kind, words, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "kind": kind,
        "words": torch.tensor(np.asarray(words).tolist()),
        "rest": [int(position), int(has_gauss), float(gauss)],
    }


def _set_numpy_state(state: Mapping[str, Any]) -> None:
    np.random.set_state((state["kind"], np.array(state["words"].tolist(), dtype=np.uint32), *state["rest"]))
