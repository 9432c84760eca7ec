import pickle
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import ModuleLayout, RankGrid, RankNotInGridError, RankRole, Topology, TopologyError
from tests.mimo_role.worlds import topologies


def test_modules_get_ranks_one_after_another():
    topology = Topology.from_modules(
        {"vision": {"dp": 2}, "audio": {"dp": 2, "colocate_with": "vision"}, "language": {"tp": 2, "pp": 2, "dp": "auto"}},
        world_size=10,
    )
    assert [(name, grid.ranks) for name, grid in topology.grids.items()] == [
        ("vision", range(2)),
        ("audio", range(2)),
        ("language", range(2, 10)),
    ]
    assert topology.grids["language"] == RankGrid([2, 1, 2, 2], ["tp", "cp", "dp", "pp"], 2)
    assert topology.world_size == 10


def test_given_ranks_and_another_order_of_axes():
    topology = Topology.from_modules(
        {
            "language": {"tp": 2, "dp": 2, "pp": 2, "ranks": "2-9", "order": ("tp", "pp", "cp", "dp")},
            "vision": {"dp": "auto", "ranks": "0-1"},
        },
        layout=ModuleLayout.NON_COLOCATED,
    )
    assert topology.grids["vision"].ranks == range(2)
    assert topology.coords_of(4) == {"language": {"tp": 0, "pp": 1, "cp": 0, "dp": 0}}


def test_colocated_modules_may_have_different_axes():
    topology = Topology.from_modules({"vision": {"dp": "auto"}, "language": {"tp": 2, "dp": 4}}, layout="colocated")
    assert topology.grids["vision"].axis_size("dp") == 8
    assert topology.role_of(3).has_modality_modules
    assert topology.role_of(3).has_language_module


def test_experts_factor_the_same_ranks_a_second_time():
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2, "dp": 4, "pp": 2, "ep": 4, "expt_tp": 1}})
    assert topology.expert_grids["language"] == RankGrid([1, 4, 2, 2], ["expt_tp", "ep", "expt_dp", "pp"], 1)
    assert Topology.from_json(topology.to_json()) == topology


def test_generalized_tensor_parallelism_adds_axes_where_it_is_used():
    sizes = {"tp": 2, "gtp_remat": 3, "dp": 2, "pp": 2, "ep": 2, "expt_gtp_remat": 2}
    topology = Topology.from_modules({"vision": {"gtp_remat": 1}, "language": sizes})
    assert topology.grids["vision"].dim_names == ("tp", "cp", "dp", "pp")
    assert topology.grids["language"] == RankGrid([2, 1, 3, 2, 2], ["tp", "cp", "gtp_remat", "dp", "pp"], 1)
    experts = RankGrid([1, 2, 2, 3, 2], ["expt_tp", "ep", "expt_gtp_remat", "expt_dp", "pp"], 1)
    assert topology.expert_grids == {"language": experts}
    assert Topology.from_json(topology.to_json()) == topology
    order = ("tp", "gtp_remat", "cp", "dp", "pp")
    assert (
        Topology.from_modules({"language": {**sizes, "order": order}}, layout="colocated").grids["language"].dim_names == order
    )
    message = r"modules.language.order=\['tp', 'cp', 'dp', 'pp'\] is not an order of tp, cp, gtp_remat, dp, pp"
    with pytest.raises(TopologyError, match=message):
        Topology.from_modules({"language": {"gtp_remat": 2, "order": ("tp", "cp", "dp", "pp")}}, layout="colocated")
    auto = Topology.from_modules({"language": {"gtp_remat": 3, "dp": "auto"}}, layout="colocated", world_size=12)
    assert auto.grids["language"].axis_size("dp") == 4
    with pytest.raises(TopologyError, match=r"modules.language.expt_gtp_remat=3 does not divide its 4 ranks; use 1, 2 or 4"):
        Topology.from_modules({"language": {"dp": 4, "expt_gtp_remat": 3}}, layout="colocated")


@given(topologies(), st.data())
def test_every_role_equals_that_of_build(topology, data):
    rank = data.draw(st.integers(0, topology.world_size - 1))
    assert topology.role_of(rank) == RankRole.build(topology.modality_module_names, topology.grids, rank=rank)
    assert list(topology.role_of(rank).modules) == list(topology.coords_of(rank)) == topology.modules_of(rank)


@given(topologies())
def test_json_and_pickles_keep_everything(topology):
    for again in (Topology.from_json(topology.to_json()), pickle.loads(pickle.dumps(topology))):
        assert again == topology
        assert again.digest == topology.digest
        assert hash(again) == hash(topology)
        assert list(again.grids) == list(topology.grids)


def test_the_canonical_json_and_its_digest_do_not_change_from_release_to_release():
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2}})
    assert topology.to_json() == (
        '{"layout":"non_colocated","modules":[{"dim_names":["tp","cp","dp","pp"],"name":"vision","rank_offset":0,'
        '"shape":[1,1,1,1]},{"dim_names":["tp","cp","dp","pp"],"name":"language","rank_offset":1,"shape":[2,1,1,1]}],'
        '"world_size":3}'
    )
    assert topology.digest == "c26742d9d662c0e57b0683d595b7a6e0d6feb5bd65bbbb2b0a1851c68e42c3d0"


def test_labels_name_the_axes_that_are_longer_than_one_slowest_first():
    topology = Topology.from_modules(
        {"vision": {"dp": 2}, "audio": {"colocate_with": "vision", "dp": 2}, "language": {"tp": 2, "pp": 2}}
    )
    assert [topology.label_of(rank) for rank in (1, 2, 5)] == [
        "vision.dp1+audio.dp1",
        "language.pp0.tp0",
        "language.pp1.tp1",
    ]


@pytest.mark.parametrize(
    ("modules", "layout", "world_size", "message"),
    [
        pytest.param({"vision": {}}, "non_colocated", None, '"language"; found vision', id="no language module"),
        pytest.param({}, "colocated", None, '"language"; found nothing', id="no module"),
        pytest.param({"language": {}}, "non_colocated", None, "needs a modality module", id="nothing to be apart from"),
        pytest.param(
            {"language": {}}, "sideways", None, "layout='sideways' is not a layout; use colocated or", id="no such layout"
        ),
        pytest.param({"language": {"tp": 0}}, "colocated", None, "modules.language.tp=0 is not a positive", id="zero"),
        pytest.param({"language": {"dp": "many"}}, "colocated", None, "a positive number or auto", id="not auto"),
        pytest.param({"language": {"tpp": 1}}, "colocated", None, "modules.language.tpp: unknown", id="unknown axis"),
        pytest.param(
            {"vision": {"tp": 3, "dp": "auto", "ranks": "0-7"}, "language": {"ranks": "8"}},
            "non_colocated",
            None,
            "modules.vision.tp=3 does not divide its 8 ranks; use 1, 2, 4 or 8",
            id="tp does not divide",
        ),
        pytest.param(
            {"vision": {"tp": 4, "pp": 4, "dp": "auto", "ranks": "0-7"}, "language": {"ranks": "8"}},
            "non_colocated",
            None,
            r"modules.vision: tp\*pp = 4\*4 = 16 does not divide its 8 ranks",
            id="tp and pp together do not divide",
        ),
        pytest.param(
            {"vision": {"dp": 2}, "language": {"tp": 4, "dp": "auto"}},
            "non_colocated",
            8,
            "modules.language.tp=4 does not divide its 6 ranks",
            id="auto does not come out even",
        ),
        pytest.param(
            {"vision": {"dp": "auto"}, "language": {"dp": "auto"}},
            "non_colocated",
            8,
            "both take the remaining ranks",
            id="auto twice",
        ),
        pytest.param(
            {"vision": {"dp": "auto"}, "language": {"tp": 2, "dp": "auto"}},
            "colocated",
            8,
            "modules.language.dp=auto on the same ranks as modules.vision.dp=auto",
            id="auto twice on the same ranks",
        ),
        pytest.param({"vision": {"dp": 8}, "language": {"dp": "auto"}}, "non_colocated", 8, "none is left", id="nothing left"),
        pytest.param(
            {"vision": {}, "language": {"dp": "auto"}}, "non_colocated", None, "needs the number of ranks", id="left of what"
        ),
        pytest.param({"vision": {}, "language": {"dp": 8}}, "non_colocated", 8, "room for 8 ranks", id="too many ranks"),
        pytest.param(
            {"vision": {"dp": 4, "ranks": "0-3"}, "language": {"dp": 4, "ranks": "2-5"}},
            "non_colocated",
            None,
            "modules.language: ranks 2-5, which overlap ranks 0-3 of modules.vision",
            id="language overlaps",
        ),
        pytest.param(
            {"vision": {"dp": 4, "ranks": "0-3"}, "audio": {"dp": 4, "ranks": "2-5"}, "language": {}},
            "non_colocated",
            None,
            "or the very same ones",
            id="modality modules overlap in part",
        ),
        pytest.param(
            {"vision": {"ranks": "0-1", "dp": 2}, "language": {"ranks": "4-5", "dp": 2}},
            "non_colocated",
            None,
            "ranks 2-3 belong to no module",
            id="uncovered",
        ),
        pytest.param({"vision": {"ranks": "3-1"}, "language": {}}, "non_colocated", None, 'write "0-7"', id="no range"),
        pytest.param(
            {"vision": {"ranks": "0-3", "dp": 3}, "language": {}},
            "non_colocated",
            None,
            "modules.vision.dp=3 makes 3 ranks with its other axes, but its ranks are 0-3; use 4",
            id="ranks and sizes disagree",
        ),
        pytest.param(
            {"vision": {"dp": 2}, "language": {"dp": 3}},
            "colocated",
            None,
            "modules.language.dp=3 makes 3 ranks .* use 2",
            id="colocated with other sizes",
        ),
        pytest.param(
            {"vision": {"colocate_with": "language"}, "language": {}},
            "non_colocated",
            None,
            "use layout: colocated",
            id="with language",
        ),
        pytest.param(
            {"vision": {"colocate_with": "audoi"}, "language": {}},
            "non_colocated",
            None,
            "audoi is no other module",
            id="with no module",
        ),
        pytest.param(
            {"a": {"colocate_with": "b"}, "b": {"colocate_with": "a"}, "language": {}},
            "non_colocated",
            None,
            "cycle: a -> b -> a",
            id="a cycle",
        ),
        pytest.param({"vision,": {}, "language": {}}, "non_colocated", None, "letters, digits", id="a comma in a name"),
        pytest.param(
            {"vision": {}, "language": {"ep": 3, "dp": 4}},
            "non_colocated",
            None,
            "modules.language.ep=3 does not divide its 4",
            id="ep",
        ),
        pytest.param(
            {"vision": {}, "language": {"ep": 2, "dp": 2, "order": ("tp", "cp", "pp", "dp")}},
            "non_colocated",
            None,
            "pp is the slowest",
            id="experts with pp inside",
        ),
        pytest.param(
            {"vision": {}, "language": {"order": ("tp", "dp")}}, "non_colocated", None, "is not an order of", id="order"
        ),
    ],
)
def test_invalid_worlds_are_refused(modules, layout, world_size, message):
    with pytest.raises(TopologyError, match=message):
        Topology.from_modules(modules, layout=layout, world_size=world_size)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "an object, not"),
        ('{"layout":"colocated","modules":[]}', "world_size is missing"),
        ('{"layout":"colocated","modules":[],"world_size":true}', "world_size=True is not of type int"),
        ('{"layout":"colocated","modules":[{}],"world_size":1}', r"modules\[0\]: name is missing"),
        (
            '{"layout":"colocated","modules":[{"name":"language","rank_offset":0,"shape":[0],"dim_names":["dp"]}],"world_size":1}',
            "not a positive integer",
        ),
        (
            '{"layout":"colocated","world_size":1,"modules":['
            + ",".join(['{"name":"language","rank_offset":0,"shape":[1],"dim_names":["dp"]}'] * 2)
            + "]}",
            "a second module 'language'",
        ),
    ],
)
def test_malformed_json_is_refused(text, message):
    with pytest.raises(TopologyError, match=message):
        Topology.from_json(text)


def test_a_rank_outside_the_world_is_refused():
    topology = Topology.from_modules({"vision": {}, "language": {}})
    with pytest.raises(RankNotInGridError, match="rank 2 is outside the world of 2 ranks"):
        topology.role_of(2)


def test_the_role_of_one_rank_in_a_million_is_fast_and_small():
    topology = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "pp": 8, "dp": "auto"}}, world_size=1 << 20)
    topology.role_of(0)
    tracemalloc.start()
    started = time.perf_counter()
    for rank in range(0, 1 << 20, 1 << 10):
        topology.role_of(rank)
    seconds = (time.perf_counter() - started) / 1024
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000
    print(f"role_of: {seconds * 1e6:.1f} us under tracemalloc")
