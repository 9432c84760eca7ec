"""Grids from the sizes of modules in a config: `dp: auto`, `colocate_with`, `ranks`."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from mimo_role.errors import TopologyError, UnknownWorldSizeError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY
from mimo_role.topology.grid import RankGrid

AXES = ("tp", "cp", "dp", "pp")
"""The axes of every grid, fastest first, as Megatron-Core orders them."""

AXES_WITH_GTP = ("tp", "cp", "gtp_remat", "dp", "pp")
"""Those of a grid with generalized tensor parallelism."""

LARGEST_WORLD = 1 << 20
"""Ranks of one world; a larger size is taken for a mistake."""

AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ModuleSizes:
    """One module as the user wrote it. Axes left out are 1."""

    tp: int = 1
    """Size of the tensor-parallel axis."""
    cp: int = 1
    """Size of the context-parallel axis."""
    gtp_remat: int = 1
    """Size of the axis of Megatron-Core's generalized tensor parallelism: ranks with different samples that share weights."""
    dp: int | Literal["auto"] = 1
    """Size of the data-parallel axis, or `auto`: what the module's other axes leave of its ranks."""
    pp: int = 1
    """Size of the pipeline-parallel axis."""
    ep: int = 1
    """Size of the expert-parallel axis; with `expt_tp` it factors the module's ranks a second time."""
    expt_tp: int = 1
    """Size of the experts' tensor-parallel axis."""
    expt_gtp_remat: int = 1
    """Size of the experts' axis of generalized tensor parallelism."""
    order: tuple[str, ...] | None = None
    """The axes `tp`, `cp`, `dp` and `pp`, fastest first. Default: this order, with `gtp_remat` before `dp` if it is above 1."""
    ranks: str | None = None
    """The module's ranks, such as `0-7`, or `3` for one. Default: the next free ones."""
    colocate_with: str | None = None
    """Another modality module, whose ranks this one shares."""
    after: str | tuple[str, ...] | None = None
    """The modules whose outputs it takes. Default: none; for the language module all encoders that no other encoder takes."""

    @classmethod
    def from_value(cls, name: str, value: "ModuleSizes | Mapping[str, Any]") -> "ModuleSizes":
        """Check one module's sizes.

        Raises:
            TopologyError: an unknown key, or a value that is impossible whatever the other modules are.
        """
        if isinstance(value, Mapping):
            unknown = set(value) - {field.name for field in fields(cls)}
            if unknown:
                key = sorted(unknown)[0]
                raise TopologyError(f"modules.{name}.{key}", f"unknown; it has {', '.join(f.name for f in fields(cls))}")
            value = cls(**value)
        if not isinstance(value, ModuleSizes):
            raise TopologyError(f"modules.{name}", f"={value!r} is not a mapping of axes to sizes")
        for axis in (*AXES_WITH_GTP, "ep", "expt_tp", "expt_gtp_remat"):
            size = getattr(value, axis)
            if axis == "dp" and size == AUTO:
                continue
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                allowed = "a positive number or auto" if axis == "dp" else "a positive number"
                raise TopologyError(f"modules.{name}.{axis}", f"={size!r} is not {allowed}")
        if value.order is not None and sorted(value.order) not in value._axis_sets:
            axes = ", ".join(AXES if value.gtp_remat == 1 else AXES_WITH_GTP)
            raise TopologyError(f"modules.{name}.order", f"={list(value.order)} is not an order of {axes}")
        return value

    @property
    def _axis_sets(self) -> list[list[str]]:
        """The sets of axes of which `order` may be an order, each sorted."""
        return [sorted(axes) for axes in (AXES, AXES_WITH_GTP)[self.gtp_remat > 1 :]]

    @property
    def sources(self) -> tuple[str, ...] | None:
        """`after` as a tuple; `None` for the default."""
        return (self.after,) if isinstance(self.after, str) else None if self.after is None else tuple(self.after)

    @property
    def fixed(self) -> int:
        """The product of all axes but `dp`."""
        return self.tp * self.cp * self.gtp_remat * self.pp

    @property
    def size(self) -> int | None:
        """The number of ranks, if it follows from the sizes."""
        return None if self.dp == AUTO else self.fixed * self.dp


@dataclass
class _Share:
    """Modules on the same ranks, which may not be known yet."""

    names: list[str]
    offset: int | None = None
    size: int | None = None


def arrange(
    modules: Mapping[str, ModuleSizes], *, colocated: bool, world_size: int | None
) -> tuple[dict[str, RankGrid], dict[str, RankGrid]]:
    """The grids of the modules and, where `ep`, `expt_tp` or `expt_gtp_remat` is above 1, their expert grids.

    Modules get ranks one after another, in the map's order. `Topology` checks the result as a whole.

    Raises:
        TopologyError: sizes that cannot be arranged.
    """
    shares = _colocated_share(modules) if colocated else _shares(modules)
    for share in shares:
        _size_from_modules(share, modules)
    _size_from_what_is_left(shares, modules, world_size)
    _check_sizes(shares, modules)
    by_hand = sorted((share.offset, share.size) for share in shares if share.offset is not None and share.size is not None)
    cursor = 0
    spans: dict[str, tuple[int, int]] = {}
    for share in shares:
        assert share.size is not None
        offset = _next_free(cursor, share.size, by_hand) if share.offset is None else share.offset
        end = offset + share.size
        if share.offset is None:
            cursor = end
        if world_size is not None and end > world_size:
            raise TopologyError(
                f"modules.{share.names[0]}", f"ends at rank {end - 1}, but there is room for {world_size} ranks"
            )
        spans.update(dict.fromkeys(share.names, (offset, share.size)))
    grids = {name: _grid(name, sizes, *spans[name]) for name, sizes in modules.items()}
    experts = {
        name: _expert_grid(name, sizes, *spans[name])
        for name, sizes in modules.items()
        if max(sizes.ep, sizes.expt_tp, sizes.expt_gtp_remat) > 1
    }
    return grids, experts


def _check_sizes(shares: list[_Share], modules: Mapping[str, ModuleSizes]) -> None:
    for share in shares:
        assert share.size is not None
        if share.size <= LARGEST_WORLD:
            continue
        name = next(name for name in share.names if modules[name].ranks or modules[name].size in (None, share.size))
        sizes = {axis: getattr(modules[name], axis) for axis in ("ranks", *AXES_WITH_GTP)}
        numbers = [axis for axis in AXES_WITH_GTP if sizes[axis] != AUTO]
        key = "ranks" if sizes["ranks"] else "dp" if sizes["dp"] == AUTO else max(numbers, key=sizes.__getitem__)
        raise TopologyError(
            f"modules.{name}.{key}", f"={sizes[key]} makes {share.size} ranks; a world has at most {LARGEST_WORLD}"
        )


def _next_free(cursor: int, size: int, by_hand: list[tuple[int, int]]) -> int:
    """The first offset from the cursor on with so many ranks that do not overlap those of modules with `ranks`."""
    for offset, held in by_hand:
        if offset < cursor + size and cursor < offset + held:
            cursor = offset + held
    return cursor


def _colocated_share(modules: Mapping[str, ModuleSizes]) -> list[_Share]:
    for name, sizes in modules.items():
        if sizes.colocate_with is not None:
            _check_partner(name, sizes.colocate_with, modules)
    return [_Share(names=list(modules))] if modules else []


def _shares(modules: Mapping[str, ModuleSizes]) -> list[_Share]:
    roots: dict[str, list[str]] = {}
    for name in modules:
        roots.setdefault(_root(name, modules), []).append(name)
    by_hand: dict[str, _Share] = {}
    shares = []
    for root, names in roots.items():
        ranks = modules[root].ranks
        if ranks is not None and ranks in by_hand:
            by_hand[ranks].names += names
            continue
        share = _Share(names=names)
        if ranks is not None:
            share.offset, share.size = _parse_ranks(root, ranks)
            by_hand[ranks] = share
        shares.append(share)
    return shares


def _root(name: str, modules: Mapping[str, ModuleSizes]) -> str:
    seen = [name]
    while (partner := modules[seen[-1]].colocate_with) is not None:
        key = f"modules.{seen[-1]}"
        _check_partner(seen[-1], partner, modules)
        if MIMO_LANGUAGE_MODULE_KEY in (seen[-1], partner):
            raise TopologyError(
                f"{key}.colocate_with",
                f"={partner}: in a non_colocated layout nothing shares ranks with the language module; use layout: colocated",
            )
        if modules[seen[-1]].ranks is not None:
            raise TopologyError(f"{key}.ranks", f"and colocate_with: {partner} are both given; remove one of them")
        if partner in seen:
            raise TopologyError(f"{key}.colocate_with", f"={partner} is a cycle: {' -> '.join([*seen, partner])}")
        seen.append(partner)
    return seen[-1]


def _check_partner(name: str, partner: str, modules: Mapping[str, ModuleSizes]) -> None:
    if partner not in modules or partner == name:
        others = ", ".join(other for other in modules if other != name)
        raise TopologyError(f"modules.{name}.colocate_with", f"={partner} is no other module; there are {others}")


def _parse_ranks(name: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", text.strip())
    first = int(match[1]) if match else 0
    last = int(match[2] or match[1]) if match else -1
    if last < first:
        raise TopologyError(f"modules.{name}.ranks", f'={text!r} is not a range of ranks; write "0-7", or "3" for one')
    return first, last - first + 1


def _size_from_modules(share: _Share, modules: Mapping[str, ModuleSizes]) -> None:
    """Set the share's size from its `ranks`, or from a module whose sizes are all numbers; refuse different ones."""
    for name in share.names:
        ranks = modules[name].ranks
        if ranks is None:
            continue
        found = _parse_ranks(name, ranks)
        if share.size is not None and found != (share.offset, share.size):
            assert share.offset is not None
            held = f"{share.offset}-{share.offset + share.size - 1}"
            raise TopologyError(
                f"modules.{name}.ranks", f"={ranks}, but it shares the ranks {held} of modules.{share.names[0]}"
            )
        share.offset, share.size = found
    if share.size is None:
        sizes = [modules[name].size for name in share.names]
        share.size = next((size for size in sizes if size is not None), None)
    autos = [name for name in share.names if modules[name].dp == AUTO]
    if share.size is None and len(autos) > 1:
        raise TopologyError(
            f"modules.{autos[1]}.dp",
            f"=auto on the same ranks as modules.{autos[0]}.dp=auto; give one of them a number",
        )


def _size_from_what_is_left(shares: list[_Share], modules: Mapping[str, ModuleSizes], world_size: int | None) -> None:
    unsized = [share for share in shares if share.size is None]
    if not unsized:
        return
    keys = [f"modules.{next(name for name in share.names if modules[name].dp == AUTO)}.dp" for share in unsized]
    if len(unsized) > 1:
        raise TopologyError(keys[1], f"=auto, and {keys[0]}=auto too: both take the remaining ranks; give one a number")
    if world_size is None:
        raise UnknownWorldSizeError(keys[0], "=auto needs the number of ranks; give a number, or world_size")
    taken = sum(share.size for share in shares if share.size is not None)
    if taken >= world_size:
        raise TopologyError(keys[0], f"=auto, but the other modules take all {world_size} ranks; none is left")
    unsized[0].size = world_size - taken


def _grid(name: str, sizes: ModuleSizes, offset: int, size: int) -> RankGrid:
    if size % sizes.fixed:
        raise _does_not_divide(name, {axis: getattr(sizes, axis) for axis in AXES_WITH_GTP if axis != "dp"}, size)
    dp = size // sizes.fixed
    if sizes.dp not in (AUTO, dp):
        raise TopologyError(
            f"modules.{name}.dp",
            f"={sizes.dp} makes {sizes.size} ranks with its other axes, but its ranks are {offset}-{offset + size - 1}; "
            f"use {dp}",
        )
    order = sizes.order or (AXES if sizes.gtp_remat == 1 else AXES_WITH_GTP)
    shape = [dp if axis == "dp" else getattr(sizes, axis) for axis in order]
    return RankGrid(shape, order, offset)


def _expert_grid(name: str, sizes: ModuleSizes, offset: int, size: int) -> RankGrid:
    if sizes.order is not None and sizes.order[-1] != "pp":
        raise TopologyError(
            f"modules.{name}.order", f"={list(sizes.order)}: with axes of experts, pp is the slowest (last) axis"
        )
    own = {"expt_tp": sizes.expt_tp, "ep": sizes.ep}
    if sizes.expt_gtp_remat > 1:
        own["expt_gtp_remat"] = sizes.expt_gtp_remat
    stage, of_experts = size // sizes.pp, math.prod(own.values())
    if stage % of_experts:
        raise _does_not_divide(name, own, stage)
    return RankGrid([*own.values(), stage // of_experts, sizes.pp], [*own, "expt_dp", "pp"], offset)


def _does_not_divide(name: str, factors: Mapping[str, int], size: int) -> TopologyError:
    for axis, factor in factors.items():
        if size % factor:
            return TopologyError(
                f"modules.{name}.{axis}", f"={factor} does not divide its {size} ranks; use {_listed(_divisors(size))}"
            )
    named = [axis for axis, factor in factors.items() if factor > 1]
    product = math.prod(factors.values())
    text = "*".join(named) + " = " + "*".join(str(factors[axis]) for axis in named)
    return TopologyError(
        f"modules.{name}", f"{text} = {product} does not divide its {size} ranks; use {_listed(_divisors(size))} in all"
    )


def _divisors(number: int) -> list[int]:
    small = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    return sorted({*small, *(number // divisor for divisor in small)})


def _listed(numbers: list[int]) -> str:
    words = [str(number) for number in numbers]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
