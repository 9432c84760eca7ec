"""Options of a module's process groups."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from mimo_role.errors import TopologyError

DEFAULT: Literal["default"] = "default"
MEGATRON: Literal["megatron"] = "megatron"

BRIDGE_CTAS = 8
"""The largest number of CUDA blocks of a bridge's kernel under NCCL, unless the module's options set another."""


@dataclass(frozen=True, kw_only=True)
class NcclOptions:
    """Fields of NCCL's communicator configuration, `ncclConfig_t`; `None`: NCCL's default."""

    cga_cluster_size: int | None = None
    """Size of a cooperative group array, 0 to 8."""
    min_ctas: int | None = None
    """The least number of CUDA blocks of a kernel."""
    max_ctas: int | None = None
    """The largest number of CUDA blocks of a kernel."""
    net_name: str | None = None
    """The network, such as `IB` or `Socket`."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The process groups of one module."""

    families: tuple[tuple[str, ...], ...] | Literal["default", "megatron"] = DEFAULT
    """Which axes get process groups. `default`: each axis, and the combinations that training needs. `megatron`: also the
    language module's embedding groups. Or a list of axis sets, beside the single axes: `[[dp, cp], [dp, pp]]`."""
    timeout_s: float | None = None
    """Seconds for each collective of these groups. Default: those of the job."""
    is_high_priority_stream: bool = False
    """Whether NCCL's kernels of these groups run on streams of high priority."""
    nccl: NcclOptions = field(default_factory=NcclOptions)
    """Options of NCCL's communicators. Default: NCCL's own."""

    def __post_init__(self) -> None:
        """
        Raises:
            TopologyError: an invalid value; its key is the field's.
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
        """All options but the families: rows with equal ranks share a group if these are equal."""
        return replace(self, families=DEFAULT)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without defaults."""
        value = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        if not isinstance(self.families, str):
            value["families"] = [list(axes) for axes in self.families]
        value["nccl"] = {name: item for name, item in asdict(self.nccl).items() if item is not None}
        return {name: item for name, item in value.items() if item != {}}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "GroupOptions":
        """The inverse of `as_dict`.

        Raises:
            ValueError: it has another form.
        """
        rest = dict(value)
        try:
            families = rest.pop("families", DEFAULT)
            if not isinstance(families, str):
                families = tuple(tuple(map(str, axes)) for axes in families)
            return cls(families=families, nccl=NcclOptions(**rest.pop("nccl", {})), **rest)
        except TypeError as error:
            raise ValueError(f"group options {value}: {error}") from None


def lean(options: GroupOptions) -> GroupOptions:
    """Options for a bridge's communicators: those of the module, with few CUDA blocks unless it sets their number.

    Each block has buffers for every peer: 10 MiB for one that sends, 2 MiB for one that receives (NVIDIA/nccl#1685).
    """
    if options.nccl.max_ctas is not None:
        return options
    return replace(options, nccl=replace(options.nccl, max_ctas=max(BRIDGE_CTAS, options.nccl.min_ctas or 0)))
