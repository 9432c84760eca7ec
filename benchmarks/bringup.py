"""Making the process groups of one encoder and one language model, against megatron-core's HyperCommGrid.create_pg.

Both make the same 20 families of groups for each module: the 15 combinations of tp, cp, dp and pp, and ep, expt_tp, expt_dp,
expt_tp with ep, and expt_tp with ep and pp (the peer's expert axes as a second grid). Each run is a new world of real
ranks over gloo on this machine, forked from a server that has imported torch and megatron-core; the clock starts when all
have joined and stops when the last has all of its groups. Cases:

- `N ranks, LANGUAGE MODULE`: seconds; `..., ms per rank`: the same divided by N.

With `--fake`, a world of 10,240 ranks in one process, on torch's fake backend, once for a rank of each distinct role:

- `calls`: how often the rank calls torch to make a group; `communicators`: how many of these it is a member of;
- `seconds`: how long it takes, on this one rank.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import combinations

from report import Row, alternate, parser, show

from mimo_role import GroupOptions, Topology

DENSE = [axes for count in range(1, 5) for axes in combinations(("tp", "cp", "dp", "pp"), count)]
EXPERT = [("ep",), ("expt_tp",), ("expt_dp",), ("expt_tp", "ep"), ("expt_tp", "ep", "pp")]
FAMILIES = GroupOptions(families=(*DENSE, *EXPERT))

WORLDS = {
    16: {"tp4 dp3": {"tp": 4, "dp": 3}, "tp2 pp2 dp3 ep3": {"tp": 2, "pp": 2, "dp": 3, "ep": 3}},
    32: {"tp8 dp3": {"tp": 8, "dp": 3}, "tp2 pp2 dp6 ep3": {"tp": 2, "pp": 2, "dp": 6, "ep": 3}},
    64: {"tp8 dp6": {"tp": 8, "dp": 6}, "tp2 pp4 dp6 ep3": {"tp": 2, "pp": 4, "dp": 6, "ep": 3}},
    128: {"tp8 dp12": {"tp": 8, "dp": 12}, "tp4 pp4 dp6 ep3": {"tp": 4, "pp": 4, "dp": 6, "ep": 3}},
}
"""By size, language modules that take three quarters of the ranks; the encoder has the rest, all along dp."""

LARGE = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "pp": 8, "dp": 144, "ep": 16}})


def ours(topology: Topology, rank: int) -> None:
    from mimo_role.groups import Groups

    Groups(topology, rank, timedelta(minutes=5), dict.fromkeys(topology.grids, FAMILIES))


def peer(topology: Topology, _: int) -> None:
    from megatron.core.hyper_comm_grid import HyperCommGrid

    for name, grid in topology.grids.items():
        stage = grid.size // grid.axis_size("pp")
        experts = topology.expert_grids.get(name)
        shape = [1, 1, stage, grid.axis_size("pp")] if experts is None else list(experts.shape)
        dense = HyperCommGrid(list(grid.shape), list(grid.dim_names), grid.rank_offset)
        expert = HyperCommGrid(shape, ["expt_tp", "ep", "expt_dp", "pp"], grid.rank_offset)
        for made, families in ((dense, DENSE), (expert, EXPERT)):
            for axes in families:
                made.create_pg(list(axes))


def bring_up(make: Callable[[Topology, int], None], topology: Topology) -> tuple[float, float]:
    """On one rank: when the clock started, and when this rank had its groups."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    started = time.monotonic()
    make(topology, dist.get_rank())
    ended = time.monotonic()
    dist.barrier()  # a rank that left would break the connections of those that still make groups
    return started, ended


def seconds_of(make: Callable[[Topology, int], None], topology: Topology) -> float:
    from mimo_role.testing import run_ranks

    preload = ["megatron.core.hyper_comm_grid"]
    found = run_ranks(bring_up, topology.world_size, make, topology, timeout_s=300, preload=preload)
    return max(ended for _, ended in found) - min(started for started, _ in found)


def real_rows(ranks: int, runs: int) -> Iterator[Row]:
    for name, language in WORLDS[ranks].items():
        topology = Topology.from_modules({"vision": {"dp": ranks // 4}, "language": language})
        assert topology.world_size == ranks
        sides = [partial(seconds_of, make, topology) for make in (ours, peer)]
        row = alternate(f"{ranks} ranks, {name}", *sides, runs)
        scale = 1000 / ranks
        yield row
        yield Row(f"{row.case}, ms per rank", row.ours * scale, row.peer * scale, row.ratio, runs)


@contextmanager
def fake_world(rank: int, world_size: int) -> Iterator[None]:
    """This process as one rank of a world in which nobody else is."""
    import os

    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    os.environ["WORLD_SIZE"] = str(world_size)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rehearse(make: Callable[[Topology, int], None], topology: Topology, rank: int) -> tuple[int, int, float]:
    """Calls, communicators and seconds of one rank on the fake backend."""
    from unittest import mock

    import torch.distributed as dist

    original = dist.new_group
    calls = members = 0

    def counting(ranks: list[int], **settings: object) -> object:
        nonlocal calls, members
        calls += 1
        members += rank in ranks
        return original(ranks, **settings)

    with fake_world(rank, topology.world_size):
        names = ("torch.distributed.new_group", "torch.distributed.distributed_c10d.new_group")
        with mock.patch(names[0], counting), mock.patch(names[1], counting):
            started = time.perf_counter()
            make(topology, rank)
            return calls, members, time.perf_counter() - started


def fake_rows() -> list[Row]:
    topology = LARGE
    ranks = {str(topology.role_of(rank)): rank for rank in reversed(range(topology.world_size))}
    rows = []
    for rank in sorted(ranks.values()):
        pairs = zip(rehearse(ours, topology, rank), rehearse(peer, topology, rank), strict=True)
        for what, (mine, theirs) in zip(("calls", "communicators", "seconds"), pairs, strict=True):
            rows.append(Row(f"{topology.label_of(rank)} (rank {rank}), {what}", mine, theirs, mine / theirs, 1))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 128], choices=WORLDS)
    options.add_argument("--runs", type=int, default=3, help="alternating runs of each case (default: 3)")
    options.add_argument("--fake", action="store_true", help="count the calls of 10,240 ranks instead")
    arguments = options.parse_args()
    rows = fake_rows() if arguments.fake else []
    for ranks in [] if arguments.fake else arguments.ranks:
        for row in real_rows(ranks, arguments.runs):
            print(f"{row.case}: ratio {row.ratio:.3f}", file=sys.stderr)
            rows.append(row)
    show("bringup", rows, arguments.json)


if __name__ == "__main__":
    main()
