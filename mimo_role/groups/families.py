"""Which rows of a module's ranks get process groups, and with which options."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from mimo_role.errors import AxisError, TopologyError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.topology import Topology

DENSE_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("tp",),
    ("cp",),
    ("dp",),
    ("pp",),
    ("dp", "cp"),
    ("tp", "cp"),
    ("tp", "pp"),
    ("tp", "dp"),
    ("tp", "dp", "cp"),
    ("tp", "cp", "dp", "pp"),
)
"""The axis sets over which a transformer's dense layers, gradients and optimizer communicate, as Megatron-Core lists them."""

EXPERT_FAMILIES: tuple[tuple[str, ...], ...] = (("ep",), ("expt_tp",), ("expt_dp",), ("expt_tp", "ep"), ("expt_tp", "ep", "pp"))
"""The same for expert layers."""

EXPERT_AXES = ("expt_tp", "ep", "expt_dp", "pp")
"""The axes of a grid of experts, fastest first."""

EMBEDDING = "embd"
"""The family of a language module's first and last stages, which share the embedding's weights."""

DEFAULT: Literal["default"] = "default"
MEGATRON: Literal["megatron"] = "megatron"

_IN_DENSE_AXES = {"ep": (), "expt_tp": (), "expt_dp": ("tp", "cp", "dp"), "pp": ("pp",)}
"""What expert axes are in a module without experts: `ep` and `expt_tp` have size one."""


@dataclass(frozen=True, kw_only=True)
class NcclOptions:
    """Fields of NCCL's communicator configuration; `None` leaves NCCL's default. See NCCL's `ncclConfig_t`."""

    cga_cluster_size: int | None = None
    min_ctas: int | None = None
    max_ctas: int | None = None
    net_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The process groups of one module."""

    families: tuple[tuple[str, ...], ...] | Literal["default", "megatron"] = DEFAULT
    """`default`: each axis, and the combinations that training needs (`DENSE_FAMILIES`, `EXPERT_FAMILIES`).
    `megatron`: also the language module's embedding groups. Or axis sets of your own, beside the single axes."""
    timeout_s: float | None = None
    """The limit for each collective of these groups; default: the job's."""
    is_high_priority_stream: bool = False
    """Whether NCCL's kernels of these groups run on streams of high priority."""
    nccl: NcclOptions = field(default_factory=NcclOptions)

    def __post_init__(self) -> None:
        """
        Raises:
            TopologyError: a value that cannot be; its key is the field's.
        """
        families: Any = self.families
        if isinstance(families, str) and families not in (DEFAULT, MEGATRON):
            raise TopologyError("families", f"={families!r} is not a list of axis sets, {DEFAULT} or {MEGATRON}")
        for index, axes in enumerate(() if isinstance(families, str) else families):
            if isinstance(axes, str):
                raise TopologyError(f"families[{index}]", f"={axes!r} is not a list of axes; write [{axes}]")
            if len(set(axes)) != len(axes):
                raise TopologyError(f"families[{index}]", f"={list(axes)} has an axis twice")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise TopologyError("timeout_s", f"={self.timeout_s:g} is not above 0")
        for name, least in (("cga_cluster_size", 0), ("min_ctas", 1), ("max_ctas", 1)):
            value = getattr(self.nccl, name)
            if value is not None and value < least:
                raise TopologyError(f"nccl.{name}", f"={value} is less than {least}")

    @property
    def communicator(self) -> "GroupOptions":
        """All but the families: groups with equal members are one group where this is equal."""
        return replace(self, families=DEFAULT)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form; what is left at its default is left out."""
        value = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        if not isinstance(self.families, str):
            value["families"] = [list(axes) for axes in self.families]
        value["nccl"] = {name: item for name, item in asdict(self.nccl).items() if item is not None}
        return {name: item for name, item in value.items() if item != {}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GroupOptions":
        """The inverse of `as_dict`.

        Raises:
            ValueError: of another form.
        """
        rest = dict(value)
        try:
            families = rest.pop("families", DEFAULT)
            if not isinstance(families, str):
                families = tuple(tuple(map(str, axes)) for axes in families)
            return cls(families=families, nccl=NcclOptions(**rest.pop("nccl", {})), **rest)
        except TypeError as error:
            raise ValueError(f"group options {value}: {error}") from None


def locate(topology: Topology, module: str, axes: tuple[str, ...]) -> tuple[RankGrid, tuple[str, ...]]:
    """The grid of the module whose axes these are: its own, or that of its experts.

    A module without experts has their axes too: `ep` and `expt_tp` of size one, and `expt_dp` for the rest of a stage.

    Raises:
        AxisError: the module has no grid with these axes.
    """
    for axis in axes:
        if not isinstance(axis, str):
            raise AxisError(f"axes are names, one argument each, not {axis!r}")
    if len(set(axes)) != len(axes):
        raise AxisError(f"an axis stands twice in {', '.join(axes)}")
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    if set(axes) <= set(grid.dim_names):
        return grid, axes
    if experts is not None and set(axes) <= set(experts.dim_names):
        return experts, axes
    if experts is None and set(axes) <= set(_IN_DENSE_AXES):
        dense = [dense for axis in axes for dense in _IN_DENSE_AXES[axis]]
        return grid, tuple(axis for axis in dense if axis in grid.dim_names)
    known = [", ".join(names) for names in (grid.dim_names, EXPERT_AXES if experts is None else experts.dim_names)]
    raise AxisError(f"module {module!r} has no grid with the axes {', '.join(axes) or '(none)'}; it has {'; or '.join(known)}")


def expert_grid_of(topology: Topology, module: str) -> RankGrid | None:
    """The grid of a module's experts; for a module without any, the one in which `ep` and `expt_tp` have size one.

    `None` for a module without experts whose stages are not runs of neighbouring ranks.
    """
    grid = topology.grids[module]
    if module in topology.expert_grids or grid.dim_names[-1] != "pp":
        return topology.expert_grids.get(module)
    stages = grid.axis_size("pp")
    return RankGrid([1, 1, grid.size // stages, stages], EXPERT_AXES, grid.rank_offset)


def families_of(topology: Topology, module: str, options: GroupOptions) -> Iterator[tuple[str, ...]]:
    """The axis sets of one module that get groups, single axes first; several may have equal rows.

    Raises:
        TopologyError: the options name an axis that the module does not have.
    """
    grid, experts = topology.grids[module], topology.expert_grids.get(module)
    for view in (grid, experts):
        if view is not None:
            yield from ((axis,) for axis in view.dim_names)
    if isinstance(options.families, str):
        known = {*grid.dim_names, *(experts.dim_names if experts is not None else ())}
        yield from (axes for axes in (*DENSE_FAMILIES, *EXPERT_FAMILIES) if set(axes) <= known)
        if set(grid.dim_names) not in map(set, DENSE_FAMILIES):
            yield grid.dim_names
        return
    for index, axes in enumerate(options.families):
        try:
            locate(topology, module, axes)
        except AxisError as error:
            raise TopologyError(f"modules.{module}.groups.families[{index}]", f"={list(axes)}: {error}") from None
        yield axes


def has_embedding_groups(module: str, options: GroupOptions) -> bool:
    """Whether the module's first and last stages get groups of their own."""
    return options.families == MEGATRON and module == MIMO_LANGUAGE_MODULE_KEY
