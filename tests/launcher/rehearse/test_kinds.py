"""The kinds of ranks of a world."""

from hypothesis import given

from launcher.rehearse.kinds import described, kinds_of
from mimo_role import Topology
from mimo_role.topology.lanes import lane_of
from tests.mimo_role.worlds import topologies

LARGE = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8, "ep": 16}})


@given(topologies(experts=True))
def test_each_rank_is_of_one_kind(topology):
    kinds = kinds_of(topology)
    assert sorted(rank for kind in kinds for rank in kind.ranks) == list(range(topology.world_size))
    assert len({kind.name for kind in kinds}) == len(kinds)
    assert all(kind.representative in kind.ranks for kind in kinds)


@given(topologies(experts=True))
def test_the_ranks_of_a_kind_have_one_role_and_equal_positions(topology):
    def facts(rank):
        for module, coords in topology.coords_of(rank).items():
            lane, lanes = lane_of(topology.grids[module], rank)
            yield module, coords["pp"], coords["tp"] == 0, coords["cp"] == 0, lane == 0, lane == lanes - 1

    for kind in kinds_of(topology):
        assert len({topology.role_of(rank) for rank in kind.ranks}) == 1
        assert len({tuple(facts(rank)) for rank in kind.ranks}) == 1


@given(topologies())
def test_rank_0_and_the_logging_rank_are_rehearsed(topology):
    ends = topology.module_graph.ends
    grid = topology.grids["language" if "language" in ends else ends[0]]
    representatives = [kind.representative for kind in kinds_of(topology)]
    assert representatives[0] == 0
    if topology.layout.value == "non_colocated":
        assert grid.rank_at({"pp": grid.axis_size("pp") - 1}) in representatives


@given(topologies())
def test_a_module_comes_after_those_whose_outputs_it_takes(topology):
    seen = []
    for kind in kinds_of(topology)[1:]:
        if topology.layout.value == "non_colocated" and len(topology.modules_of(kind.representative)) == 1:
            (module,) = topology.modules_of(kind.representative)
            seen.append(module)
            later = {name for name in topology.grids if module in topology.module_graph.before(name)}
            assert later.isdisjoint(seen)


def test_ten_thousand_ranks_are_of_sixty_kinds():
    kinds = kinds_of(LARGE)
    assert len(kinds) == 60
    stages = [kind.stage for kind in kinds]
    assert stages.count("vision") == 4
    assert all(stages.count(f"language.pp{stage}") == 7 for stage in range(8))


def test_a_kind_has_a_name_that_shows_its_positions():
    topology = Topology.from_modules({"vision": {"dp": 3}, "language": {"tp": 2, "pp": 2}})
    names = [(kind.name, kind.ranks) for kind in kinds_of(topology)]
    assert names == [
        ("vision (first lane, 1 of language's lanes)", (0,)),
        ("vision (middle lanes, 1 of language's lanes)", (1,)),
        ("vision (last lane, 1 of language's lanes)", (2,)),
        ("language.pp0 (tp 0)", (3,)),
        ("language.pp0 (tp 1)", (4,)),
        ("language.pp1 (tp 0)", (5,)),
        ("language.pp1 (tp 1)", (6,)),
    ]


def test_another_rank_along_tp_is_the_last_one_where_shards_may_be_smaller():
    kind = next(kind for kind in kinds_of(LARGE) if kind.name.startswith("language.pp0 (first lane") and len(kind.ranks) == 7)
    assert kind.representative == 1024 + 7


def test_ranks_are_listed_in_a_line():
    assert described([5]) == "rank 5"
    assert described(range(3328, 4480)) == "1,152 ranks, 3328-4479"
    assert described(range(0, 10_000, 2)) == "5,000 ranks, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, ... 9998"
