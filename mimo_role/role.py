"""What one rank runs: the role API of Megatron-Core's MIMO, computed by arithmetic.

Names and behaviour follow `megatron.core.models.mimo.config.role`; `rank=`, the JSON forms and true stages in
colocated layouts are additions. Nothing here imports torch.
"""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from mimo_role.errors import RankNotInGridError
from mimo_role.host import environ

logger = logging.getLogger(__name__)

MIMO_LANGUAGE_MODULE_KEY = "language"
"""The fixed name of the one language module."""


class Grid(Protocol):
    """The ranks of one module: a `RankGrid`, or Megatron-Core's `HyperCommGrid`."""

    @property
    def rank_offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dim_names(self) -> Sequence[str]: ...


class ModuleLayout(Enum):
    """Where the modules lie relative to one another."""

    COLOCATED = "colocated"
    """Every module on every rank."""
    NON_COLOCATED = "non_colocated"
    """Each rank runs modality modules or the language module, not both."""


@dataclass(frozen=True)
class ModuleStageInfo:
    """A rank's position in one module's pipeline."""

    is_first_stage: bool
    is_last_stage: bool


@dataclass(frozen=True)
class RankRole:
    """The modules that one rank runs, and its stage in each.

    A value: equal when its contents are, hashable, and safe to share between threads.
    """

    modules: dict[str, ModuleStageInfo] = field(default_factory=dict)
    mode: ModuleLayout = ModuleLayout.COLOCATED

    def __hash__(self) -> int:
        return hash((self.mode, frozenset(self.modules.items())))

    @classmethod
    def build(
        cls,
        modality_module_names: Iterable[str],
        module_to_grid_map: Mapping[str, Grid] | None = None,
        *,
        rank: int | None = None,
    ) -> "RankRole":
        """The role of `rank`, by default of this process: the live process group's rank, else `RANK`.

        Without a grid map, or with grids that all span the same ranks, every rank runs every module.

        Raises:
            RankNotInGridError: the grids differ and none spans the rank. It is a `RuntimeError`.
        """
        if not module_to_grid_map or cls._all_grids_colocated(module_to_grid_map):
            return cls._colocated(modality_module_names, module_to_grid_map, rank=rank)
        return cls._from_grid_map(module_to_grid_map, rank=rank)

    @staticmethod
    def _all_grids_colocated(module_to_grid_map: Mapping[str, Grid]) -> bool:
        return len({(grid.rank_offset, grid.size) for grid in module_to_grid_map.values()}) <= 1

    @classmethod
    def _colocated(
        cls,
        modality_module_names: Iterable[str],
        module_to_grid_map: Mapping[str, Grid] | None = None,
        *,
        rank: int | None = None,
    ) -> "RankRole":
        grids = module_to_grid_map or {}
        names = [*modality_module_names, MIMO_LANGUAGE_MODULE_KEY]
        staged = {name for name in names if name in grids and _pipeline_size(grids[name]) > 1}
        if staged:
            rank = _this_rank() if rank is None else rank
            for name in staged:
                _require_spanned(rank, {name: grids[name]})
        return cls(
            modules={
                name: stage_info(grids[name], rank) if rank is not None and name in staged else ModuleStageInfo(True, True)
                for name in names
            },
            mode=ModuleLayout.COLOCATED,
        )

    @classmethod
    def _from_grid_map(cls, module_to_grid_map: Mapping[str, Grid], *, rank: int | None = None) -> "RankRole":
        rank = _this_rank() if rank is None else rank
        _require_spanned(rank, module_to_grid_map)
        return cls(
            modules={
                name: stage_info(grid, rank)
                for name, grid in module_to_grid_map.items()
                if grid.rank_offset <= rank < grid.rank_offset + grid.size
            },
            mode=ModuleLayout.NON_COLOCATED,
        )

    @property
    def has_modality_modules(self) -> bool:
        """Whether this rank runs any module other than the language module."""
        return len(self.modules) > (MIMO_LANGUAGE_MODULE_KEY in self.modules)

    @property
    def has_language_module(self) -> bool:
        """Whether this rank runs the language module."""
        return MIMO_LANGUAGE_MODULE_KEY in self.modules

    @property
    def modality_module_names(self) -> list[str]:
        """This rank's modules other than the language module, in the order of `modules`."""
        return [name for name in self.modules if name != MIMO_LANGUAGE_MODULE_KEY]

    def is_first_stage(self, module_name: str) -> bool:
        """Whether this rank holds the module's first stage; `False` for a module it does not run."""
        info = self.modules.get(module_name)
        return info is not None and info.is_first_stage

    def is_last_stage(self, module_name: str) -> bool:
        """Whether this rank holds the module's last stage; `False` for a module it does not run."""
        info = self.modules.get(module_name)
        return info is not None and info.is_last_stage

    def as_dict(self) -> dict[str, Any]:
        """The JSON form: `{"mode": ..., "modules": {name: {"is_first_stage": ..., "is_last_stage": ...}}}`."""
        return {
            "mode": self.mode.value,
            "modules": {
                name: {"is_first_stage": info.is_first_stage, "is_last_stage": info.is_last_stage}
                for name, info in self.modules.items()
            },
        }

    @classmethod
    def from_dict(cls, value: Any) -> "RankRole":
        """The inverse of `as_dict`.

        Raises:
            ValueError: the value has another form; the message names the part.
        """
        if not isinstance(value, dict) or set(value) != {"mode", "modules"}:
            raise ValueError(f'a role is an object with the keys "mode" and "modules", not {value!r}')
        layouts = [layout.value for layout in ModuleLayout]
        if value["mode"] not in layouts:
            raise ValueError(f"mode is one of {', '.join(layouts)}, not {value['mode']!r}")
        if not isinstance(value["modules"], dict):
            raise ValueError(f"modules is an object, not {value['modules']!r}")
        keys = {"is_first_stage", "is_last_stage"}
        for name, info in value["modules"].items():
            if not isinstance(info, dict) or set(info) != keys or not all(isinstance(flag, bool) for flag in info.values()):
                raise ValueError(f"modules.{name} has the booleans is_first_stage and is_last_stage, not {info!r}")
        modules = {name: ModuleStageInfo(**info) for name, info in value["modules"].items()}
        return cls(modules=modules, mode=ModuleLayout(value["mode"]))


def stage_info(grid: Grid, rank: int) -> ModuleStageInfo:
    """The stage of a rank that the grid spans, from its coordinate along `pp`."""
    stride = 1
    for name, size in zip(grid.dim_names, grid.shape, strict=True):
        if name == "pp":
            stage = (rank - grid.rank_offset) // stride % size
            return ModuleStageInfo(is_first_stage=stage == 0, is_last_stage=stage == size - 1)
        stride *= size
    return ModuleStageInfo(is_first_stage=True, is_last_stage=True)


def _pipeline_size(grid: Grid) -> int:
    return dict(zip(grid.dim_names, grid.shape, strict=True)).get("pp", 1)


def _require_spanned(rank: int, grids: Mapping[str, Grid]) -> None:
    if any(grid.rank_offset <= rank < grid.rank_offset + grid.size for grid in grids.values()):
        return
    spans = ", ".join(f"{name} {grid.rank_offset}-{grid.rank_offset + grid.size - 1}" for name, grid in grids.items())
    raise RankNotInGridError(f"rank {rank} is in no module's grid ({spans})")


def _this_rank() -> int:
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    rank = environ.rank()
    if rank is None:
        raise RankNotInGridError("this process has no rank: no process group is up and RANK is not set; pass rank=")
    return rank
