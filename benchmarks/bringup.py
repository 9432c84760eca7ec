"""Making the process groups of one encoder and one language model, against megatron-core's HyperCommGrid.create_pg.

Both make the same 20 families of groups for each module: the 15 combinations of tp, cp, dp and pp, and ep, expt_tp, expt_dp,
expt_tp with ep, and expt_tp with ep and pp (the peer's expert axes as a second grid). Each run is a new world of real
ranks over gloo on this machine, forked from a server that has imported torch and megatron-core; the clock starts when all
have joined and stops when the last has all of its groups. Cases:

- `N ranks, LANGUAGE MODULE`: seconds; `..., ms per rank`: the same divided by N;
- `..., and one all-reduce over each`: the same, and then the first use of each of a rank's groups.

With `--fake`, a world of 10,240 ranks in one process, on torch's fake backend, once for a rank of each distinct role:

- `calls`: how often the rank calls torch to make a group; `communicators`: how many of these it is a member of;
- `seconds`: how long it takes, on this one rank; ours is the whole context.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import combinations
from statistics import median
from typing import Any

from report import Row, parser, show

from mimo_role import GroupOptions, Topology

DENSE = [axes for count in range(1, 5) for axes in combinations(("tp", "cp", "dp", "pp"), count)]
EXPERT = [("ep",), ("expt_tp",), ("expt_dp",), ("expt_tp", "ep"), ("expt_tp", "ep", "pp")]
FAMILIES = GroupOptions(families=(*DENSE, *EXPERT))

Make = Callable[[Topology, int], list[Any]]
"""From a topology and a rank to the rank's groups, one for each module and family."""

WORLDS = {
    16: {"tp4 dp3": {"tp": 4, "dp": 3}, "tp2 pp2 dp3 ep3": {"tp": 2, "pp": 2, "dp": 3, "ep": 3}},
    32: {"tp8 dp3": {"tp": 8, "dp": 3}, "tp2 pp2 dp6 ep3": {"tp": 2, "pp": 2, "dp": 6, "ep": 3}},
    64: {"tp8 dp6": {"tp": 8, "dp": 6}, "tp2 pp4 dp6 ep3": {"tp": 2, "pp": 4, "dp": 6, "ep": 3}},
    128: {"tp8 dp12": {"tp": 8, "dp": 12}, "tp4 pp4 dp6 ep3": {"tp": 4, "pp": 4, "dp": 6, "ep": 3}},
}
"""By size, language modules that take three quarters of the ranks; the encoder has the rest, all along dp."""

LIMIT_S = 120
"""For one world; a side that takes longer is counted with this, and said to."""

LARGE = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "pp": 8, "dp": 144, "ep": 16}})


def ours(topology: Topology, rank: int) -> list[Any]:
    from mimo_role.groups.process_groups import ProcessGroups

    groups = ProcessGroups(topology, rank, timedelta(minutes=5), dict.fromkeys(topology.grids, FAMILIES))
    return [groups.get(module, axes) for module in topology.modules_of(rank) for axes in (*DENSE, *EXPERT)]


def peer(topology: Topology, _: int) -> list[Any]:
    from megatron.core.hyper_comm_grid import HyperCommGrid

    mine = []
    for name, grid in topology.grids.items():
        stage = grid.size // grid.axis_size("pp")
        experts = topology.expert_grids.get(name)
        shape = [1, 1, stage, grid.axis_size("pp")] if experts is None else list(experts.shape)
        dense = HyperCommGrid(list(grid.shape), list(grid.dim_names), grid.rank_offset)
        expert = HyperCommGrid(shape, ["expt_tp", "ep", "expt_dp", "pp"], grid.rank_offset)
        for made, families in ((dense, DENSE), (expert, EXPERT)):
            for axes in families:
                mine.append(made.create_pg(list(axes)))
    return [group for group in mine if group is not None]


def context(topology: Topology, _: int) -> list[Any]:
    """Ours as a user has it: the whole context, its groups among it."""
    import mimo_role

    found = mimo_role.init(topology, groups=dict.fromkeys(topology.grids, FAMILIES))
    return [found.group(module, axis) for module in found.role.modules for axis in ("tp", "cp", "dp", "pp")]


SIDES = {"ours": ours, "peer": peer}


def bring_up(make: Make, topology: Topology) -> tuple[float, float, float]:
    """On one rank: when the clock started, when this rank had its groups, and when it had used each of them."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    started = time.monotonic()
    groups = make(topology, dist.get_rank())
    ended = time.monotonic()
    dist.barrier()  # a rank that left would break the connections of those that still make groups
    began = time.monotonic()
    for group in groups:
        dist.all_reduce(torch.ones(()), group=group)
    used = time.monotonic()
    dist.barrier()
    return started, ended, ended + used - began


def one_world(make: Make, topology: Topology) -> tuple[float, float]:
    """Seconds from the moment when all ranks have joined until the last has its groups, and has used each once."""
    from mimo_role.testing import run_ranks

    preload = ["megatron.core.hyper_comm_grid"]
    found = run_ranks(bring_up, topology.world_size, make, topology, timeout_s=LIMIT_S, preload=preload)
    start = min(started for started, _, _ in found)
    return max(ended for _, ended, _ in found) - start, max(used for _, _, used in found) - start


def seconds_of(side: str, ranks: int, language: str) -> tuple[float, float] | None:
    """One world in a process of its own, and where that is allowed in a network of its own; `None` if it took too long."""
    command = [*own_network(), sys.executable, __file__, "--one-world", side, str(ranks), language]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and f"not finished after {LIMIT_S} s" not in done.stderr:
        raise SystemExit(done.stderr)
    return None if done.returncode != 0 else tuple(json.loads(done.stdout))


@cache
def own_network() -> list[str]:
    """A command that puts another into a new network, where no run finds ports that an earlier one has used up.

    gloo binds a port for each connection, and 128 ranks make tens of thousands of them on one machine.
    """
    inside = 'ip link set lo up && echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"'
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", inside, "sh"]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        print("no network of its own for each run: large worlds may run out of ports", file=sys.stderr)
        return []
    return command


def world(ranks: int, language: str) -> Topology:
    topology = Topology.from_modules({"vision": {"dp": ranks // 4}, "language": WORLDS[ranks][language]})
    assert topology.world_size == ranks
    return topology


def real_rows(ranks: int, runs: int) -> Iterator[Row]:
    for language in WORLDS[ranks]:
        found: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        late = dict.fromkeys(SIDES, False)
        for _ in range(runs):
            for side in SIDES:
                seconds = None if late[side] else seconds_of(side, ranks, language)
                late[side] = seconds is None
                found[side].append(seconds or (LIMIT_S, LIMIT_S))
        case = f"{ranks} ranks, {language}" + "".join(f" ({side} not in {LIMIT_S} s)" for side in SIDES if late[side])
        for at, (what, scale) in enumerate(
            [("", 1.0), (", and one all-reduce over each", 1.0), (", ms per rank", 1000 / ranks)]
        ):
            mine, theirs = (median(seconds[at % 2] for seconds in found[side]) * scale for side in SIDES)
            yield Row(case + what, mine, theirs, mine / theirs, runs)


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


def rehearse(make: Make, topology: Topology, rank: int) -> tuple[int, int, float]:
    """Calls, communicators and seconds of one rank on the fake backend."""
    from unittest import mock

    import torch.distributed as dist

    import mimo_role

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
            seconds = time.perf_counter() - started
        mimo_role.shutdown()
    return calls, members, seconds


def fake_rows() -> list[Row]:
    topology = LARGE
    ranks = {str(topology.role_of(rank)): rank for rank in reversed(range(topology.world_size))}
    rows = []
    for rank in sorted(ranks.values()):
        pairs = zip(rehearse(context, topology, rank), rehearse(peer, topology, rank), strict=True)
        for what, (mine, theirs) in zip(("calls", "communicators", "seconds"), pairs, strict=True):
            rows.append(Row(f"{topology.label_of(rank)} (rank {rank}), {what}", mine, theirs, mine / theirs, 1))
    return rows


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[16, 32, 64, 128], choices=WORLDS)
    options.add_argument("--runs", type=int, default=3, help="alternating runs of each case (default: 3)")
    options.add_argument("--fake", action="store_true", help="count the calls of 10,240 ranks instead")
    options.add_argument("--one-world", nargs=3, metavar=("SIDE", "RANKS", "LANGUAGE"), help="time one world only")
    arguments = options.parse_args()
    if arguments.one_world:
        side, ranks, language = arguments.one_world
        print(json.dumps(one_world(SIDES[side], world(int(ranks), language))))
        return
    rows = fake_rows() if arguments.fake else []
    for ranks in [] if arguments.fake else arguments.ranks:
        for row in real_rows(ranks, arguments.runs):
            print(f"{row.case}: ratio {row.ratio:.3f}", file=sys.stderr)
            rows.append(row)
    show("bringup", rows, arguments.json)


if __name__ == "__main__":
    main()
