"""Topology: the grids of one world, and the role of any of its ranks by arithmetic."""

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, pairwise
from types import MappingProxyType
from typing import Any

from mimo_role.errors import RankNotInGridError, TopologyError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY, ModuleLayout, RankRole, stage_info
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.module_graph import ModuleGraph
from mimo_role.topology.sizing import LARGEST_WORLD, ModuleSizes, arrange

_MODULE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, eq=False)
class Topology:
    """The module-to-grid map of one world.

    Ranks `0 .. world_size - 1` are covered exactly. `expert_grids` factor the ranks of some modules a second time, along
    `expt_tp`, `ep`, `expt_dp` and `pp`. `after` names the modules whose outputs a module takes: all modules' in the finished
    object; those left out are by default encoders, which feed the language module.

    Raises:
        TopologyError: the grids do not form a world; see `docs/reference/config.md` for the rules.
    """

    layout: ModuleLayout
    world_size: int
    grids: Mapping[str, RankGrid]
    expert_grids: Mapping[str, RankGrid] = field(default_factory=dict)
    after: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "grids", MappingProxyType(dict(self.grids)))
        object.__setattr__(self, "expert_grids", MappingProxyType(dict(self.expert_grids)))
        _check_names(self.grids)
        object.__setattr__(self, "after", MappingProxyType(dict(ModuleGraph.of(list(self.grids), self.after).after)))
        _check_layout(self.layout, self.grids)
        _check_cover(self.world_size, self.grids)
        _check_experts(self.grids, self.expert_grids)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Topology) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Topology.from_json, (self.to_json(),))

    @classmethod
    def from_modules(
        cls,
        modules: Mapping[str, ModuleSizes | Mapping[str, Any]],
        *,
        layout: ModuleLayout | str = ModuleLayout.NON_COLOCATED,
        world_size: int | None = None,
    ) -> "Topology":
        """Arrange modules, given by their sizes along the axes, as grids of one world.

        `Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": "auto"}}, world_size=8)` gives vision
        ranks 0-1 and language ranks 2-7. `world_size` is only needed if `dp: auto` takes the remaining ranks. A
        smaller world is an error; a larger one is not filled.

        Raises:
            TopologyError: sizes that cannot be arranged, with the key path of the wrong value.
        """
        sizes = {name: ModuleSizes.from_value(name, value) for name, value in modules.items()}
        layout = _layout("layout", layout)
        grids, expert_grids = arrange(sizes, colocated=layout is ModuleLayout.COLOCATED, world_size=world_size)
        after = {name: size.sources for name, size in sizes.items() if size.sources is not None}
        end = max((grid.ranks.stop for grid in grids.values()), default=0)
        return cls(layout=layout, world_size=end, grids=grids, expert_grids=expert_grids, after=after)

    @property
    def modality_module_names(self) -> list[str]:
        """All modules but the language module, in the map's order."""
        return [name for name in self.grids if name != MIMO_LANGUAGE_MODULE_KEY]

    @cached_property
    def module_graph(self) -> ModuleGraph:
        """Which module feeds which."""
        return ModuleGraph(self.after)

    def modules_of(self, rank: int) -> list[str]:
        """The modules that the rank runs, in the order of its role.

        Raises:
            RankNotInGridError: the world has no such rank.
        """
        if not 0 <= rank < self.world_size:
            raise RankNotInGridError(f"rank {rank} is outside the world of {self.world_size} ranks")
        if self.layout is ModuleLayout.COLOCATED:
            return [*self.modality_module_names, MIMO_LANGUAGE_MODULE_KEY]
        starts, names = self._modules_by_start
        return list(names[bisect_right(starts, rank) - 1])

    def role_of(self, rank: int) -> RankRole:
        """The role of any rank, in time that does not depend on the world's size."""
        return RankRole(modules={name: stage_info(self.grids[name], rank) for name in self.modules_of(rank)}, mode=self.layout)

    def coords_of(self, rank: int) -> dict[str, dict[str, int]]:
        """The rank's coordinates in each of its modules: `{"language": {"tp": 0, "cp": 0, "dp": 1, "pp": 0}}`."""
        return {name: self.grids[name].coords(rank) for name in self.modules_of(rank)}

    def label_of(self, rank: int) -> str:
        """The rank's modules, each with the coordinates along axes longer than one, slowest first.

        `language.pp0.tp1`; modules that share a rank are joined by `+`.
        """
        return "+".join(
            ".".join([name, *(f"{axis}{at}" for axis, at in reversed(coords.items()) if self.grids[name].axis_size(axis) > 1)])
            for name, coords in self.coords_of(rank).items()
        )

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, a list of modules in the map's order."""
        modules = []
        for name, grid in self.grids.items():
            module = {"name": name, "rank_offset": grid.rank_offset, **_axes_as_dict(grid)}
            if not self.module_graph.is_default:
                module["after"] = list(self.after[name])
            if name in self.expert_grids:
                module["experts"] = _axes_as_dict(self.expert_grids[name])
            modules.append(module)
        return {"layout": self.layout.value, "world_size": self.world_size, "modules": modules}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces. Equal topologies give equal text."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def _modules_by_start(self) -> tuple[list[int], list[list[str]]]:
        """In a non_colocated layout: the first ranks of the spans, ascending, and which modules each span runs."""
        modules: dict[int, list[str]] = {}
        for name, grid in self.grids.items():
            modules.setdefault(grid.rank_offset, []).append(name)
        starts = sorted(modules)
        return starts, [modules[start] for start in starts]

    @classmethod
    def from_json(cls, text: str) -> "Topology":
        """The inverse of `to_json`.

        Raises:
            TopologyError: it is not JSON, has another form, or is not a world.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise TopologyError("topology", f"not JSON: {error}") from None
        return cls.from_dict(value)

    @classmethod
    def from_dict(cls, value: Any) -> "Topology":
        """The inverse of `as_dict`.

        Raises:
            TopologyError: it has another form, or is not a world.
        """
        _check_form("topology", value, {"layout": str, "world_size": int, "modules": list})
        grids: dict[str, RankGrid] = {}
        expert_grids: dict[str, RankGrid] = {}
        after: dict[str, tuple[str, ...]] = {}
        for index, module in enumerate(value["modules"]):
            where = f"topology.modules[{index}]"
            required = {"name": str, "rank_offset": int, "shape": list, "dim_names": list}
            _check_form(where, module, required, {"experts": dict, "after": list})
            name = module["name"]
            if name in grids:
                raise TopologyError(where, f"a second module {name!r}")
            grids[name] = _grid_from_dict(where, module, module["rank_offset"])
            if "after" in module:
                after[name] = tuple(module["after"])
            if "experts" in module:
                _check_form(f"{where}.experts", module["experts"], {"shape": list, "dim_names": list})
                expert_grids[name] = _grid_from_dict(f"{where}.experts", module["experts"], module["rank_offset"])
        layout = _layout("topology.layout", value["layout"])
        return cls(layout=layout, world_size=value["world_size"], grids=grids, expert_grids=expert_grids, after=after)


def _check_names(grids: Mapping[str, RankGrid]) -> None:
    for name in grids:
        if not _MODULE_NAME.fullmatch(name):
            raise TopologyError(f"modules.{name}", "a module's name is letters, digits, _ and -, and starts with a letter")
    if MIMO_LANGUAGE_MODULE_KEY not in grids:
        found = ", ".join(grids) or "nothing"
        raise TopologyError("modules", f'exactly one module is named "{MIMO_LANGUAGE_MODULE_KEY}"; found {found}')


def _check_layout(layout: ModuleLayout, grids: Mapping[str, RankGrid]) -> None:
    if layout is ModuleLayout.COLOCATED:
        language = grids[MIMO_LANGUAGE_MODULE_KEY]
        for name, grid in grids.items():
            if grid.ranks != language.ranks:
                raise TopologyError(
                    f"modules.{name}",
                    f"{_span(grid)}, but the language module has {_span(language)}; in a colocated layout all modules have "
                    "the same ranks (layout: non_colocated gives each its own)",
                )
        return
    if len(grids) == 1:
        raise TopologyError("layout", "non_colocated needs a modality module besides the language module; use colocated")
    for (one, first), (other, second) in combinations(grids.items(), 2):
        overlap = max(first.ranks.start, second.ranks.start) < min(first.ranks.stop, second.ranks.stop)
        may_share = first.ranks == second.ranks and MIMO_LANGUAGE_MODULE_KEY not in (one, other)
        if overlap and not may_share:
            raise TopologyError(
                f"modules.{other}",
                f"{_span(second)}, which overlap {_span(first)} of modules.{one}; give it ranks of its own"
                + (
                    " (layout: colocated puts all modules on the same ranks)"
                    if MIMO_LANGUAGE_MODULE_KEY in (one, other)
                    else ", or the very same ones"
                ),
            )


def _check_cover(world_size: int, grids: Mapping[str, RankGrid]) -> None:
    spans = sorted((grid.ranks.start, grid.ranks.stop) for grid in grids.values())
    if spans[-1][1] != world_size:
        raise TopologyError("modules", f"the modules end at rank {spans[-1][1] - 1}, the world at rank {world_size - 1}")
    if world_size > LARGEST_WORLD:
        raise TopologyError("modules", f"they end at rank {world_size - 1}; a world has at most {LARGEST_WORLD} ranks")
    for (_, stop), (start, _) in pairwise([(0, 0), *spans]):
        if start > stop:
            missing = f"rank {stop} belongs" if start - stop == 1 else f"ranks {stop}-{start - 1} belong"
            raise TopologyError("modules", f"{missing} to no module; ranks are covered from 0 to {world_size - 1}")


def _check_experts(grids: Mapping[str, RankGrid], expert_grids: Mapping[str, RankGrid]) -> None:
    for name, experts in expert_grids.items():
        grid = grids.get(name)
        if grid is None or grid.ranks != experts.ranks:
            raise TopologyError(f"modules.{name}", "its expert axes do not factor its ranks")
        if _axis_step(grid, "pp") != _axis_step(experts, "pp"):
            raise TopologyError(f"modules.{name}", "its pipeline rows differ between its axes and its expert axes")


def _axis_step(grid: RankGrid, axis: str) -> tuple[int, int]:
    """The axis's size and stride: grids of the same ranks have equal rows along the axis if both are equal."""
    if axis not in grid.dim_names or grid.axis_size(axis) == 1:
        return (1, 1)
    return (grid.axis_size(axis), grid.stride(axis))


def _span(grid: RankGrid) -> str:
    return f"rank {grid.rank_offset}" if grid.size == 1 else f"ranks {grid.ranks.start}-{grid.ranks.stop - 1}"


def _layout(key: str, value: ModuleLayout | str) -> ModuleLayout:
    try:
        return ModuleLayout(value)
    except ValueError:
        allowed = " or ".join(layout.value for layout in ModuleLayout)
        raise TopologyError(key, f"={value!r} is not a layout; use {allowed}") from None


def _axes_as_dict(grid: RankGrid) -> dict[str, Any]:
    return {"shape": list(grid.shape), "dim_names": list(grid.dim_names)}


def _check_form(where: str, value: Any, required: dict[str, type], optional: dict[str, type] | None = None) -> None:
    known = {**required, **(optional or {})}
    if not isinstance(value, dict):
        raise TopologyError(where, f"an object, not {value!r}")
    for key in [*required, *value]:
        if key not in value:
            raise TopologyError(where, f"{key} is missing")
        if key not in known:
            raise TopologyError(where, f"unknown key {key!r}; it has {', '.join(known)}")
        if not isinstance(value[key], known[key]) or isinstance(value[key], bool):
            raise TopologyError(f"{where}.{key}", f"={value[key]!r} is not of type {known[key].__name__}")


def _grid_from_dict(where: str, axes: Mapping[str, Any], rank_offset: int) -> RankGrid:
    try:
        return RankGrid(axes["shape"], axes["dim_names"], rank_offset)
    except (ValueError, TypeError) as error:
        raise TopologyError(where, str(error)) from None
