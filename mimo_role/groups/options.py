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
class Communicator:
    """How one process group is created: rows with equal ranks share a group if these are equal."""

    timeout_s: float | None = None
    is_high_priority_stream: bool = False
    nccl: NcclOptions = field(default_factory=NcclOptions)
    purpose: str = ""
    """Separates a second group of the same ranks from the first."""


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """The process groups of one module."""

    families: tuple[tuple[str, ...], ...] | Literal["default", "megatron"] = DEFAULT
    """Which axes get process groups. `default`: each axis, and the combinations that training needs. `megatron`: also the
    language module's embedding groups, and second groups `dp_cp_ag` and `expt_dp_ag`, which gather parameters. Or a list of
    axis sets, beside the single axes: `[[dp, cp], [dp, pp]]`."""
    timeout_s: float | None = None
    """Seconds for each collective of these groups. Default: those of the job."""
    is_high_priority_stream: bool = False
    """Whether NCCL's kernels of these groups run on streams of high priority."""
    high_priority_stream_groups: tuple[tuple[str, ...] | str, ...] = ()
    """The groups for which this is so if it is not so for all: `[tp, ep, [dp, cp], embd]`. Axes of size one do not count:
    with `cp: 1`, `dp` is the group of `[dp, cp]` too."""
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
    def priority_families(self) -> tuple[tuple[str, ...], ...]:
        """`high_priority_stream_groups`, each as the names of its axes."""
        return tuple((item,) if isinstance(item, str) else item for item in self.high_priority_stream_groups)

    def communicator(self, *, is_high_priority: bool = False, purpose: str = "") -> Communicator:
        """How one of the groups is created.

        Args:
            is_high_priority: whether it is among `high_priority_stream_groups`.
            purpose: of a second group of the same ranks.
        """
        is_high_priority = is_high_priority or self.is_high_priority_stream
        return Communicator(timeout_s=self.timeout_s, is_high_priority_stream=is_high_priority, nccl=self.nccl, purpose=purpose)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without defaults."""
        value = {item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default}
        if not isinstance(self.families, str):
            value["families"] = [list(axes) for axes in self.families]
        if self.high_priority_stream_groups:
            value["high_priority_stream_groups"] = [
                axes if isinstance(axes, str) else list(axes) for axes in self.high_priority_stream_groups
            ]
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
            listed = tuple(_family(axes) for axes in rest.pop("high_priority_stream_groups", ()))
            nccl = NcclOptions(**rest.pop("nccl", {}))
            return cls(families=families, high_priority_stream_groups=listed, nccl=nccl, **rest)
        except TypeError as error:
            raise ValueError(f"group options {value}: {error}") from None


def lean(options: GroupOptions) -> Communicator:
    """The communicators of a bridge: with the options of the module, and few CUDA blocks unless it sets their number.

    Each block has buffers for every peer: 10 MiB for one that sends, 2 MiB for one that receives (NVIDIA/nccl#1685).
    """
    own = options.communicator()
    if own.nccl.max_ctas is not None:
        return own
    return replace(own, nccl=replace(own.nccl, max_ctas=max(BRIDGE_CTAS, own.nccl.min_ctas or 0)))


def _family(axes: Any) -> tuple[str, ...] | str:
    return axes if isinstance(axes, str) else tuple(map(str, axes))
