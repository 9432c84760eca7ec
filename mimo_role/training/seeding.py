"""Names and seeds of random streams. Pure arithmetic.

A stream is named after a module and coordinates in it, `language.dp1.pp2`. Ranks with the same name draw the same numbers.
"""

import hashlib
import operator
from collections.abc import Collection, Mapping

from mimo_role.errors import AxisError
from mimo_role.groups.families import EXPERT_AXES, expert_grid_of
from mimo_role.topology.grid import RankGrid
from mimo_role.topology.sizing import AXES_WITH_GTP
from mimo_role.topology.topology import Topology

DIFFERENT_OVER = ("dp", "gtp_remat", "pp")
"""The axes over which dropout masks differ: ranks of one tp or cp row have the same samples or parts of them."""

DATA_PARALLEL_RNG = "data-parallel-rng"
MODEL_PARALLEL_RNG = "model-parallel-rng"
EXPERT_PARALLEL_RNG = "expert-parallel-rng"
GTP_REMAT_RNG = "gtp-remat-rng"
EXPERT_GTP_REMAT_RNG = "egtp-remat-rng"


def stream_of(topology: Topology, rank: int, module: str, different_over: Collection[str] = DIFFERENT_OVER) -> str:
    """The name of a rank's stream for a module: the module, and the rank's coordinates along some axes.

    Coordinates of 0 are omitted, so a name depends neither on the sizes of axes nor on the number of ranks: lane 3 draws the
    same numbers in a world of 8 lanes as in one of 16.

    Args:
        different_over: the axes along which ranks draw different numbers, among the module's own and those of its experts.

    Raises:
        AxisError: there is no such module or axis, or the rank does not run the module.
    """
    coords = _coords(topology, rank, module)
    if unknown := sorted(set(different_over) - set(coords)):
        raise AxisError(f"different_over: no axis {unknown[0]!r}; module {module!r} has {', '.join(coords)}")
    return ".".join([module, *(f"{axis}{coords[axis]}" for axis in sorted(set(different_over)) if coords[axis])])


def seed_of(seed: int, stream: str, purpose: str) -> int:
    """The seed of one stream for one purpose, 0 to 2**63 - 1: the first 63 bits of a SHA-256.

    Purposes separate generators: Python's and NumPy's use the same algorithm, and would draw the same from one seed.
    """
    digest = hashlib.sha256(f"{operator.index(seed)}/{stream}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def megatron_seeds(seed: int, topology: Topology, rank: int, module: str) -> Mapping[str, int]:
    """The seeds of Megatron-Core's `CudaRNGStatesTracker` by name, as Megatron-LM derives them from its `--seed`.

    `data-parallel-rng` is also the seed of torch's default generators: equal over tp, cp and dp, different over pp. The seeds
    of generalized tensor parallelism are there where its axes are above 1.

    Source: `_set_random_seed` in Megatron-LM's `megatron/training/initialize.py` (`seed + 100 * pp_rank`), and
    `model_parallel_cuda_manual_seed` in megatron-core 0.19.2, `tensor_parallel/random.py`.

    Raises:
        AxisError: there is no such module, or the rank does not run it.
    """
    coords = _coords(topology, rank, module)
    base = operator.index(seed) + 100 * coords["pp"]
    dense, expert = base + 2718 + coords["tp"], base + 1024 + 100 * coords["ep"] + coords["expt_tp"]
    seeds = {DATA_PARALLEL_RNG: base, MODEL_PARALLEL_RNG: dense, EXPERT_PARALLEL_RNG: expert}
    experts = topology.expert_grids.get(module)
    if _is_divided(topology.grids[module], "gtp_remat"):
        seeds[GTP_REMAT_RNG] = dense + 65536 * (1 + coords["gtp_remat"])
    if experts is not None and _is_divided(experts, "expt_gtp_remat"):
        seeds[EXPERT_GTP_REMAT_RNG] = expert + 32768 + 65536 * (1 + coords["expt_gtp_remat"])
    return seeds


def _is_divided(grid: RankGrid, axis: str) -> bool:
    return axis in grid.dim_names and grid.axis_size(axis) > 1


def _coords(topology: Topology, rank: int, module: str) -> dict[str, int]:
    """The rank's coordinates along the module's axes and those of its experts; 0 along axes that the module lacks."""
    if module not in topology.grids:
        raise AxisError(f"no module {module!r}; there are {', '.join(topology.grids)}")
    grid, experts = topology.grids[module], expert_grid_of(topology, module)
    if rank not in grid:
        raise AxisError(f"rank {rank} does not run {module!r}; it runs {', '.join(topology.modules_of(rank))}")
    absent = dict.fromkeys((*AXES_WITH_GTP, *EXPERT_AXES, "expt_gtp_remat"), 0)
    return absent | (experts.coords(rank) if experts is not None else {}) | grid.coords(rank)
