"""HyperCommGrid behaves like Megatron-Core's."""

import os
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

import mimo_role
from mimo_role import GroupOptions, HyperCommGrid, MimoError, RankRole, Topology
from mimo_role.testing import run_ranks

CUBE = ([2, 2, 2], ["tp", "cp", "dp"])
APART = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2, "pp": 2, "ep": 4}})


@pytest.fixture(autouse=True)
def world_of_16(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")


def test_a_grid_copies_its_arguments():
    shape, names = [2, 3], ["tp", "dp"]
    grid = HyperCommGrid(shape, names, rank_offset=4, backend="gloo")
    shape[0], names[0] = 7, "xx"
    assert (grid.shape, grid.dim_names, grid.rank_offset, grid.size, grid.backend) == ([2, 3], ["tp", "dp"], 4, 6, "gloo")
    assert HyperCommGrid([2], ["tp"]).backend is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(([2, 2], ["tp"]), ValueError, r"len\(shape\) \[2, 2\] != len\(dim_names\) \['tp'\]", id="lengths"),
        pytest.param(([2], ["tp"], -1), ValueError, "rank_offset must be non-negative, got -1", id="negative offset"),
        pytest.param(([4, 5], ["tp", "dp"]), RuntimeError, r"shape \[4, 5\] is over sized with world size 16", id="too large"),
        pytest.param(([8], ["tp"], 9), RuntimeError, "over sized with world size 16 and rank offset 9", id="beyond the end"),
        pytest.param(([2, 2], ["tp", "tp"]), ValueError, "duplicate dim_names", id="an axis twice"),
        pytest.param(([0], ["tp"]), ValueError, "positive ints", id="no ranks"),
        pytest.param(([2.5], ["tp"]), ValueError, "positive ints", id="half a rank"),
    ],
)
def test_an_invalid_grid_is_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        HyperCommGrid(*arguments)
    assert isinstance(caught.value, MimoError)


def test_the_worlds_size_must_be_known(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(RuntimeError, match="Cannot determine world size: WORLD_SIZE is not set"):
        HyperCommGrid([2], ["tp"])


def test_the_slowest_axis_comes_first_whatever_the_order_of_names():
    grid = HyperCommGrid(*CUBE)
    assert grid.get_rank_enum("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grid.get_rank_enum("dp") == [[0, 4], [1, 5], [2, 6], [3, 7]]
    for dims in (["tp", "cp"], ["cp", "tp"], ("tp", "cp")):
        assert grid.get_rank_enum(dims) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid._gen_rank_enum(["tp", "cp"]) == [[0, 2, 1, 3], [4, 6, 5, 7]]
    assert grid._gen_rank_enum(["cp", "tp"]) == [[0, 1, 2, 3], [4, 5, 6, 7]]


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
@given(shape=shapes, offset=st.integers(0, 5), data=st.data())
@settings(max_examples=50)
def test_rows_are_megatrons(shape, offset, data):
    from megatron.core.hyper_comm_grid import HyperCommGrid as Megatrons

    os.environ["WORLD_SIZE"] = "100"
    names = ["tp", "cp", "dp", "pp"][: len(shape)]
    dims = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    ours, theirs = HyperCommGrid(shape, names, offset), Megatrons(shape, names, offset)
    assert ours.get_rank_enum(dims) == theirs.get_rank_enum(dims)
    assert ours.get_rank_enum(dims[0]) == theirs.get_rank_enum(dims[0])
    assert ours._gen_rank_enum(dims) == theirs._gen_rank_enum(dims)
    assert (ours.size, ours.shape, ours.dim_names) == (theirs.size, theirs.shape, theirs.dim_names)


EXPERT = {"name": "expert", "shape": [1, 4, 1, 2], "dim_names": ["expt_tp", "ep", "expt_dp", "pp"], "shared_dims": ["pp"]}


def dense():
    return HyperCommGrid([2, 1, 2, 2], ["tp", "cp", "dp", "pp"])


def test_a_view_factors_the_same_ranks_again():
    grid = dense()
    grid.register_view(**EXPERT)
    assert grid.get_rank_enum("ep", view="expert") == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grid.get_rank_enum(["expt_tp", "ep", "pp"], view="expert") == [list(range(8))]
    assert grid.get_rank_enum("pp", view="expert") == grid.get_rank_enum("pp")
    assert grid.get_rank_enum("tp") == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(ValueError, match="View 'expert' is already registered"):
        grid.register_view(**EXPERT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "base"}, "View 'base' is already registered"),
        ({"shape": [8]}, r"len\(shape\) \[8\] != len\(dim_names\)"),
        ({"dim_names": ["ep", "ep", "expt_dp", "pp"]}, "View 'expert' has duplicate dim_names"),
        ({"shape": [1, 4, 0, 2]}, "View 'expert' shape must be positive ints"),
        ({"shape": [1, 4, 2, 2]}, r"View 'expert' shape \[1, 4, 2, 2\] has size 16, but the grid size is 8"),
        ({"shared_dims": ["pp", "pp"]}, "View 'expert' has duplicate shared_dims"),
        ({"shared_dims": ["ep"]}, "Shared dim 'ep' of view 'expert' is not in the base view"),
        ({"shared_dims": ["tp"]}, "Shared dim 'tp' of view 'expert' is not in the view's dim_names"),
        ({"dim_names": ["pp", "ep", "expt_dp", "expt_tp"], "shape": [2, 4, 1, 1]}, "Shared dim 'pp' has different membership"),
    ],
)
def test_a_view_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dense().register_view(**(EXPERT | changes))


def test_shared_axes_must_agree_together_too():
    grid = HyperCommGrid([2, 3, 2], ["tp", "dp", "pp"])
    with pytest.raises(ValueError, match=r"different membership"):
        grid.register_view("swapped", [2, 2, 3], ["tp", "pp", "dp"], shared_dims=["tp", "pp"])
    grid.register_view("same", [2, 1, 3, 2], ["tp", "ep", "dp", "pp"], shared_dims=["tp", "dp", "pp"])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda grid: grid.get_rank_enum("ep"), ValueError, r"'ep' is not in view 'base' with dim_names \['tp', 'cp', 'dp'\]"),
        (lambda grid: grid.get_rank_enum(["tp", "tp"]), ValueError, "duplicate axis"),
        (
            lambda grid: grid.get_rank_enum("tp", view="ghost"),
            KeyError,
            r"Registered views: \['base'\]",
        ),
        (lambda grid: grid.get_pg("tp"), KeyError, "Process group for tp hasn't been created. Call create_pg first."),
        (lambda grid: grid.get_pg(["tp", "dp"]), KeyError, "Process group for dp-tp hasn't been created"),
        (lambda grid: grid.create_pg("ep"), ValueError, "'ep' is not in view 'base'"),
    ],
)
def test_unknown_views_axes_and_groups_are_named(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call(HyperCommGrid(*CUBE))
    assert isinstance(caught.value, MimoError)


def members(group):
    return None if group is None else dist.get_process_group_ranks(group)


def refused(call):
    try:
        call()
    except KeyError as error:
        return str(error)


def standalone():
    dist.init_process_group("gloo")
    del os.environ["WORLD_SIZE"]  # the process group also has it
    grid = HyperCommGrid([2, 2], ["tp", "dp"], rank_offset=1)
    grid.register_view("expert", [1, 2, 2], ["expt_tp", "ep", "dp"], shared_dims=["dp"])
    tp = grid.create_pg("tp", timeout=timedelta(seconds=20), group_desc="rows of tp")
    both = grid.create_pg(["tp", "dp"])
    ep = grid.create_pg("ep", view="expert")
    shared = grid.create_pg("dp", view="expert")
    total = torch.tensor(dist.get_rank())
    if grid.is_current_rank_in_grid():
        dist.all_reduce(total, group=both)
    answers = {
        "members": [members(group) for group in (tp, both, ep, shared)],
        "sum": int(total),
        "same": (grid.get_pg("tp") is tp, grid.get_pg(["dp", "tp"]) is both, grid.get_pg("dp") is shared),
        "apart": ep is None or ep is not tp,
        "twice": refused(lambda: grid.create_pg("tp")),
        "shared twice": refused(lambda: grid.create_pg("dp")),
        "desc": tp and tp.group_desc,
    }
    grid.destroy()
    answers["after destroy"] = refused(lambda: grid.get_pg("tp"))
    again = grid.create_pg("tp")
    if again is not None:
        dist.barrier(group=again)
    grid.destroy()
    grid.destroy()
    dist.barrier()
    return answers


@pytest.mark.ranks
def test_a_standalone_grid_creates_its_groups_over_the_whole_world():
    found = run_ranks(standalone, 6)
    assert [found[rank]["members"] for rank in (0, 1, 4, 5)] == [
        [None] * 4,
        [[1, 2], [1, 2, 3, 4], [1, 2], [1, 3]],
        [[3, 4], [1, 2, 3, 4], [3, 4], [2, 4]],
        [None] * 4,
    ]
    assert [answers["sum"] for answers in found] == [0, 10, 10, 10, 10, 5]
    for answers in found:
        assert answers["same"] == (True, True, True)
        assert answers["apart"]
        assert answers["twice"].startswith("Process group tp has already been created")
        assert answers["shared twice"].startswith("Process group dp has already been created")
        assert answers["after destroy"].startswith("Process group for tp hasn't been created")
    assert found[2]["desc"] == "rows of tp"


def beside_a_context():
    context = mimo_role.current()
    made = []
    original = dist.new_group
    dist.new_group = lambda *args, **settings: (made.append(args), original(*args, **settings))[1]
    grid = HyperCommGrid([2, 1, 2, 2], ["tp", "cp", "dp", "pp"], rank_offset=2)
    wanted = [["tp"], ["cp"], ["tp", "pp"], ["dp", "cp"]]
    taken = [grid.create_pg(dims) for dims in wanted]
    inside = grid.is_current_rank_in_grid()
    expected = [context.group("language", *dims) if inside else None for dims in wanted]
    twice = refused(lambda: grid.create_pg("tp"))
    first = len(made)
    other = HyperCommGrid([3, 3], ["tp", "dp"]).create_pg("tp")  # rows that the context does not have
    own_timeout = members(grid.create_pg("dp", timeout=timedelta(seconds=9)))
    grid.destroy()
    total = torch.tensor(1)
    if inside:
        dist.all_reduce(total, group=context.group("language", "tp"))
    return taken == expected, first, twice[:41], members(other), own_timeout, len(made), int(total)


@pytest.mark.ranks
def test_a_grid_uses_a_contexts_groups_and_does_not_destroy_them():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2, "pp": 2}})
    found = run_ranks(beside_a_context, topology)
    for rank, (same, first, twice, other, own_timeout, made, total) in enumerate(found):
        assert same
        assert (first, made) == (0, (rank < 9) + (rank >= 2))
        assert twice == "Process group tp has already been created"
        assert other == ([rank // 3 * 3, rank // 3 * 3 + 1, rank // 3 * 3 + 2] if rank < 9 else None)
        assert own_timeout == (list(topology.grids["language"].row_of(rank, "dp")) if rank >= 2 else None)
        assert total == (1 if rank < 2 else 2)


def grids_of_a_context():
    context = mimo_role.current()
    grids = context.module_to_grid_map
    found = {}
    for name, grid in grids.items():
        wanted = [("tp", None), (["dp", "cp"], None), (["expt_tp", "ep", "pp"], "expert"), ("expt_dp", "expert")]
        found[name] = [members(grid.get_pg(dims, view=view)) for dims, view in wanted]
    role = RankRole.build(["vision"], grids)
    return found, role == context.role, refused(lambda: grids["language"].get_pg(["dp", "pp"]))


@pytest.mark.ranks
def test_a_contexts_grids_have_its_groups():
    found = run_ranks(grids_of_a_context, APART)
    assert found[0] == (
        {"vision": [[0], [0, 1], [0], [0, 1]], "language": [None] * 4},
        True,
        "Process group for pp-dp hasn't been created. Call create_pg first.",
    )
    assert found[9][0] == {"vision": [None] * 4, "language": [[8, 9], [7, 9], list(range(2, 10)), [9]]}
    assert all(same for _, same, _ in found)


def grids_of_modules_with_unlike_options():
    topology = Topology.from_modules({"vision": {"tp": 2, "dp": 2}, "language": {"tp": 2, "dp": 2}}, layout="colocated")
    context = mimo_role.init(topology, backend="gloo", groups={"language": GroupOptions(timeout_s=5.0)})
    same = []
    for module, grid in context.module_to_grid_map.items():
        for dims in (["tp"], ["tp", "dp"]):
            same.append(grid.get_pg(dims) is grid.create_pg(dims) is context.group(module, *dims))
    apart = context.group("vision", "tp") is not context.group("language", "tp")
    dist.barrier()
    return same, apart, context.group("vision", "tp", "dp") is dist.group.WORLD


@pytest.mark.ranks
def test_a_modules_grid_has_the_modules_groups():
    assert run_ranks(grids_of_modules_with_unlike_options, 4) == [([True] * 4, True, True)] * 4
