"""The smallest world that has every kind of rank of a large one: for what only real peers show. Pure arithmetic."""

import math
from collections.abc import Iterator, Sequence

from mimo_role import Topology
from mimo_role.topology.lanes import lane_count

_KEPT_LANES = 3
"""First, middle and last."""


def smaller_sizes(topology: Topology) -> dict[str, int]:
    """The smallest `dp` of each module with which the world still has first, middle and last lanes of all stages.

    All other axes stay. Modules with different numbers of lanes keep different ones, and multiples stay multiples.

    Args:
        topology: the large world.

    Returns:
        By module; the same as in the large world where that is smaller already.
    """
    found: dict[str, int] = {}
    fewest = min(map(lane_count, topology.grids.values()))
    for modules in _spans(topology):
        ranks = next(size for size in _sizes(topology, modules) if _is_enough(topology, modules, size, fewest))
        found |= {module: ranks // _beside_dp(topology, module) for module in modules}
    return found


def overrides_of(topology: Topology, given: Sequence[str] = (), *, has_pools: bool) -> list[str]:
    """The smaller sizes as overrides of the config, on this machine.

    Args:
        topology: the large world.
        given: the overrides that it was made with. They come first, without those that the smaller sizes replace.
        has_pools: whether the config has pools, which no longer apply.
    """
    words = [f"modules.{module}.dp={dp}" for module, dp in smaller_sizes(topology).items()]
    if has_pools:
        words += ["pools=null", *(f"modules.{module}.pool=null" for module in topology.grids)]
    replaced = [word.partition("=")[0] for word in words]
    kept = [word for word in given if not any(_is_within(word.partition("=")[0], key) for key in replaced)]
    return [*kept, *words]


def _is_within(key: str, other: str) -> bool:
    """Whether a key is another one or below it."""
    return key == other or key.startswith(f"{other}.")


def _spans(topology: Topology) -> Iterator[list[str]]:
    """The modules that share ranks, together."""
    spans: dict[range, list[str]] = {}
    for module, grid in topology.grids.items():
        spans.setdefault(grid.ranks, []).append(module)
    yield from spans.values()


def _sizes(topology: Topology, modules: Sequence[str]) -> Iterator[int]:
    """The numbers of ranks that the modules' other axes divide, up to the one that they have."""
    size = topology.grids[modules[0]].size
    step = math.lcm(*(_beside_dp(topology, module) for module in modules), *_expert_sizes(topology, modules))
    yield from range(step, size, step)
    yield size


def _beside_dp(topology: Topology, module: str) -> int:
    grid = topology.grids[module]
    return grid.size // grid.axis_size("dp")


def _expert_sizes(topology: Topology, modules: Sequence[str]) -> Iterator[int]:
    for module in modules:
        if (experts := topology.expert_grids.get(module)) is not None:
            yield experts.size // experts.axis_size("expt_dp")


def _is_enough(topology: Topology, modules: Sequence[str], size: int, fewest: int) -> bool:
    """Whether each module has enough lanes, in a relation to others as before."""
    for module in modules:
        grid = topology.grids[module]
        lanes = lane_count(grid)
        of_dp = lanes // grid.axis_size("dp")
        kept = min(fewest, _KEPT_LANES)
        more = kept if lanes == fewest else 2 * kept if lanes % fewest == 0 else kept + 1
        wanted = min(lanes, max(more, _KEPT_LANES))
        if size // _beside_dp(topology, module) * of_dp < wanted:
            return False
    return True
