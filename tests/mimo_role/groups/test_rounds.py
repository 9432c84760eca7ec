import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_role import GroupOptions, ModuleLayout, NcclOptions, RankGrid, Topology, TopologyError
from mimo_role.groups.communicators import communicator_of
from mimo_role.groups.families import DENSE_FAMILIES, EXPERT_FAMILIES, families_of, locate
from mimo_role.groups.options import Communicator
from mimo_role.groups.rounds import schedule
from mimo_role.groups.row_set import RowSet
from tests.mimo_role.worlds import topologies

MEGATRON = GroupOptions(families="megatron")
ALL_20 = GroupOptions(
    families=(
        *DENSE_FAMILIES,
        *[("cp", "pp"), ("dp", "pp"), ("cp", "dp", "pp"), ("tp", "cp", "pp"), ("tp", "dp", "pp")],
        *EXPERT_FAMILIES,
    )
)
OPTIONS = [GroupOptions(), MEGATRON, ALL_20, GroupOptions(families=(), timeout_s=5.0)]


@st.composite
def worlds_with_options(draw):
    topology = draw(topologies(experts=True))
    return topology, {name: draw(st.sampled_from(OPTIONS)) for name in topology.grids}


@given(worlds_with_options())
@settings(max_examples=50)
def test_every_round_has_disjoint_rows_of_more_than_one_rank(world):
    topology, options = world
    for round_ in schedule(topology, options).rounds:
        rows = list(round_.rows())
        assert rows == sorted(rows)
        assert all(len(row) > 1 for row in rows)
        row_of = {rank: row for row in rows for rank in row}
        assert len(row_of) == sum(map(len, rows)) > 0
        for rank in range(topology.world_size):
            groups = round_.group_set_of(rank)
            assert (groups and groups.rows.row_of(rank)) == row_of.get(rank)


@given(worlds_with_options())
@settings(max_examples=50)
def test_every_row_is_created_exactly_once_or_is_the_world(world):
    topology, options = world
    rounds = schedule(topology, options).rounds
    for rank in range(topology.world_size):
        group_sets = [groups for round_ in rounds if (groups := round_.group_set_of(rank))]
        made = [(groups.rows.row_of(rank), groups.options) for groups in group_sets]
        assert len(made) == len(set(made))
        wanted = set()
        for name in topology.modules_of(rank):
            for axes in families_of(topology, name, options[name]):
                grid, own = locate(topology, name, axes)
                wanted.add((grid.row_of(rank, own), communicator_of(topology, name, options[name], axes)))
        wanted = {(row, own) for row, own in wanted if len(row) > 1}
        on_world = (tuple(range(topology.world_size)), Communicator())
        embedding = {row for row, _ in made} - {row for row, _ in wanted}
        assert wanted - {on_world} <= set(made)
        assert len(embedding) <= 1
        assert not embedding or options["language"] == MEGATRON


def test_a_group_of_one_rank_needs_no_round():
    flat = Topology(ModuleLayout.COLOCATED, 4, {"language": RankGrid([4], ["dp"])})
    made = schedule(flat)
    assert len(made) == 0
    assert made.makes(RowSet(range(4), ()))
    assert not made.makes(RowSet(range(4), ((1, 2),)))


@given(topologies(experts=True))
@settings(max_examples=50)
def test_a_row_set_has_the_rows_of_the_grid(topology):
    for grid in [*topology.grids.values(), *topology.expert_grids.values()]:
        for axes in [(), ("pp",), grid.dim_names[:2], grid.dim_names[1:3], grid.dim_names]:
            rows = RowSet.of(grid, axes)
            assert sorted(rows.rows()) == sorted(grid.rows(axes))
            assert (rows.row_size, rows.row_count) == (grid.row_size(axes), grid.row_count(axes))
            for rank in (grid.ranks.start, grid.ranks.stop - 1):
                assert rows.row_of(rank) == grid.row_of(rank, axes)


@pytest.mark.parametrize(("stages", "rows"), [(1, [(4,), (5,)]), (2, [(4, 6), (5, 7)]), (3, [(4, 8), (5, 9), (6,), (7,)])])
def test_embedding_groups_have_the_first_and_last_stage(stages, rows):
    found = RowSet.ends_of(RankGrid([2, stages], ["tp", "pp"], 4), "pp")
    assert sorted(found.rows()) == [row for row in rows if len(row) > 1 or stages == 1]
    assert [found.row_of(rank) for rank in found.span] == [next(row for row in rows if rank in row) for rank in found.span]


@pytest.mark.parametrize(
    ("modules", "layout", "rounds"),
    [
        ({"vision": {"dp": 4}, "language": {"dp": 4}}, "colocated", 0),
        ({"vision": {"dp": 2}, "language": {"dp": 2}}, "non_colocated", 1),
        ({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}}, "non_colocated", 3),
        ({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8}}, "non_colocated", 6),
    ],
)
def test_modules_on_different_ranks_share_rounds(modules, layout, rounds):
    assert len(schedule(Topology.from_modules(modules, layout=layout))) == rounds


PRIORITIES = GroupOptions(families="megatron", high_priority_stream_groups=("tp", "ep", "expt_dp"))


@pytest.mark.parametrize("options", [MEGATRON, ALL_20, PRIORITIES], ids=["megatron", "20 families", "priorities"])
def test_ten_thousand_ranks_need_no_more_than_twelve_rounds(options):
    topology = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8, "ep": 16}})
    made = schedule(topology, {"vision": MEGATRON, "language": options})
    assert topology.world_size == 10_240
    assert len(made) <= 12


def test_equal_rows_of_two_modules_are_created_once_unless_options_differ():
    topology = Topology.from_modules({"vision": {"tp": 2, "dp": 2}, "language": {"tp": 2, "pp": 2}}, layout="colocated")
    names = [groups.names for round_ in schedule(topology).rounds for groups in round_.group_sets]
    assert names == [("vision.tp", "language.tp"), ("vision.dp", "language.pp")]
    own = {"language": GroupOptions(nccl=NcclOptions(max_ctas=4))}
    names = [groups.names[0] for round_ in schedule(topology, own).rounds for groups in round_.group_sets]
    assert names == ["vision.tp", "vision.dp", "language.tp", "language.pp", "language.tp_pp"]


def test_a_schedule_as_text():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 3}})
    made = schedule(topology, {"language": MEGATRON})
    assert str(made).splitlines() == [
        "5 rounds for 8 ranks",
        "0: vision.dp (1 groups of 2); language.tp (3 groups of 2)",
        "1: language.pp (2 groups of 3)",
        "2: language.tp_pp (1 groups of 6)",
        "3: language.expt_dp_ag (3 groups of 2)",
        "4: language.embd (2 groups of 2)",
    ]
    assert made.as_list()[4:] == [[{"names": ["language.embd"], "groups": 2, "group_size": 2}]]


@pytest.mark.parametrize(
    ("module", "axes", "message"),
    [
        ("language", ("tp", "sp"), r"modules.language.groups.families\[0\]=\['tp', 'sp'\]: module 'language' has no grid with"),
        ("language", ("tp", "ep"), r"has no grid with the axes tp, ep; it has tp, cp, dp, pp"),
        ("sound", ("tp",), "modules.sound: no such module; there are vision, language"),
    ],
)
def test_options_for_unknown_modules_and_axes_are_refused(module, axes, message):
    topology = Topology.from_modules({"vision": {}, "language": {}})
    with pytest.raises(TopologyError, match=message):
        schedule(topology, {module: GroupOptions(families=(axes,))})


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("sp", r"=\['sp'\]: module 'language' has no grid with the axes sp"),
        ("dp_cp", r"=\['dp_cp'\]: .*; write \[dp, cp\]"),
        (("dp", "pp"), r"=\['dp', 'pp'\]: no such group is created; add it to families"),
        ("embd", r"=\['embd'\]: no such group is created"),
        ("dp_cp_ag", r"=\['dp_cp_ag'\]: no such group is created"),
    ],
)
def test_priority_for_groups_that_are_not_created_is_refused(family, message):
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2, "pp": 3, "dp": 2}})
    with pytest.raises(TopologyError, match=r"modules.language.groups.high_priority_stream_groups\[0\]" + message):
        schedule(topology, {"language": GroupOptions(high_priority_stream_groups=(family,))})


def test_equal_rows_are_two_groups_where_only_one_is_of_high_priority():
    topology = Topology.from_modules({"language": {"dp": 2, "tp": 2}}, layout="colocated")
    options = {"language": GroupOptions(high_priority_stream_groups=(("tp", "dp"),))}
    names = [groups.names for round_ in schedule(topology, options).rounds for groups in round_.group_sets]
    assert names == [("language.tp",), ("language.dp",), ("language.tp_dp",)]
    assert [groups.names for groups in schedule(topology).on_world] == [("language.tp_dp",)]


def test_a_module_without_experts_has_their_axes_at_size_one():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 2}})
    grid = topology.grids["language"]
    for axes, rows in [(("ep",), ()), (("expt_tp", "ep", "pp"), ("pp",)), (("expt_dp",), ("tp", "cp", "dp"))]:
        found, own = locate(topology, "language", axes)
        assert RowSet.of(found, own) == RowSet.of(grid, rows)


@given(
    st.builds(
        GroupOptions,
        families=st.sampled_from(["default", "megatron"]) | st.lists(st.lists(st.text(), unique=True).map(tuple)).map(tuple),
        timeout_s=st.none() | st.floats(0, 100, exclude_min=True),
        is_high_priority_stream=st.booleans(),
        high_priority_stream_groups=st.lists(st.text() | st.lists(st.text()).map(tuple)).map(tuple),
        nccl=st.builds(NcclOptions, max_ctas=st.none() | st.integers(1), net_name=st.none() | st.text()),
    )
)
def test_options_survive_their_json_form(options):
    assert GroupOptions.from_dict(options.as_dict()) == options


@pytest.mark.parametrize("value", [{"families": "many"}, {"nccl": {"colour": 1}}, {"speed": 3}, {"families": 3}])
def test_options_of_another_form_are_refused(value):
    with pytest.raises(ValueError, match=r"families|colour|speed"):
        GroupOptions.from_dict(value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"families": "megatorn"}, "families='megatorn' is not a list of axis sets, default or megatron"),
        ({"families": ("dp",)}, r"families\[0\]='dp' is not a list of axes; write \[dp\]"),
        ({"families": (("dp",), ("tp", "tp"))}, r"families\[1\]=\['tp', 'tp'\] has an axis twice"),
        ({"timeout_s": -1.0}, "timeout_s=-1 is not above 0"),
        ({"nccl": NcclOptions(min_ctas=0)}, "nccl.min_ctas=0 is less than 1"),
    ],
)
def test_invalid_options_are_refused(values, message):
    with pytest.raises(TopologyError, match=message):
        GroupOptions(**values)
