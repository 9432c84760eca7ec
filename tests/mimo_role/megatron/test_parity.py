"""Rows, views and roles are those of the installed Megatron-Core, in random cases: accepted and refused alike."""

import os
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_role import HyperCommGrid, RankRole
from mimo_role.megatron import hyper_comm_grid as ours

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

NAMES = ["tp", "cp", "gtp_remat", "dp", "pp"]
EXPERT_NAMES = ["expt_tp", "ep", "expt_gtp_remat", "expt_dp", "pp"]


@pytest.fixture(scope="module", autouse=True)
def world_of_4096():
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = "4096"
    yield
    os.environ.pop("WORLD_SIZE")
    if before is not None:
        os.environ["WORLD_SIZE"] = before


@pytest.fixture(scope="module")
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core import hyper_comm_grid

        yield hyper_comm_grid


@pytest.fixture(scope="module")
def theirs_with_views(theirs):
    if not hasattr(theirs.HyperCommGrid, "register_view"):
        pytest.skip("the installed megatron-core has neither views nor roles: 0.19 and later have them")
    return theirs


def outcome(call):
    """What a call returns, or the name of its error's builtin type."""
    try:
        return call()
    except KeyError:
        return "KeyError"
    except ValueError:
        return "ValueError"
    except RuntimeError:
        return "RuntimeError"


def both(theirs, call):
    """The outcome of a call with Megatron's class and with ours."""
    return outcome(lambda: call(theirs.HyperCommGrid)), outcome(lambda: call(HyperCommGrid))


sizes = st.sampled_from([1, 1, 2, 2, 3, 4])
axes_of_base = st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True)
dims = st.lists(st.sampled_from([*NAMES, *EXPERT_NAMES, "nope"]), max_size=4, unique=True)


@st.composite
def grids(draw):
    names = draw(axes_of_base)
    length = len(names) + draw(st.sampled_from([0] * 12 + [1, -1]))
    shape = draw(st.lists(sizes, min_size=length, max_size=length))
    return shape, names, draw(st.sampled_from([0, 0, 3, 4090, -1]))


@given(grids(), dims)
@settings(max_examples=2000, deadline=None)
def test_grids_and_their_rows(theirs, arguments, wanted):
    made = both(theirs, lambda kind: kind(*arguments))
    if not isinstance(made[1], HyperCommGrid):
        assert made[0] == made[1]
        return
    megatrons, own = made
    assert (own.size, own.shape, own.dim_names, own.rank_offset) == (
        megatrons.size,
        megatrons.shape,
        megatrons.dim_names,
        megatrons.rank_offset,
    )
    known = [axis for axis in wanted if axis in own.dim_names]
    if known:
        assert own.get_rank_enum(known) == megatrons.get_rank_enum(known)
        assert own.get_rank_enum(known[0]) == megatrons.get_rank_enum(known[0])
        assert own._gen_rank_enum(known) == megatrons._gen_rank_enum(known)
        assert outcome(lambda: own.get_pg(known)) == outcome(lambda: megatrons.get_pg(known)) == "KeyError"
    if len(known) < len(wanted):
        assert outcome(lambda: own.get_rank_enum(wanted)) == outcome(lambda: megatrons.get_rank_enum(wanted)) == "ValueError"


@st.composite
def views(draw):
    """A base, and a second factorization that mostly fits it."""
    tp, cp, gtp, dp, pp = (draw(st.sampled_from([1, 2, 3])) for _ in NAMES)
    stage = tp * cp * gtp * dp
    divisors = [size for size in (1, 2, 3, 4, 6) if stage % size == 0]
    first = draw(st.sampled_from(divisors))
    second = draw(st.sampled_from([size for size in divisors if stage // first % size == 0]))
    shape = [first, second, 1, stage // first // second, pp]
    order = draw(st.sampled_from([[0, 1, 2, 3, 4]] * 3 + [[4, 0, 1, 2, 3], [1, 0, 3, 2, 4]]))
    names = [EXPERT_NAMES[at] for at in order]
    shape = [shape[at] for at in order]
    if draw(st.integers(0, 9)) == 0:
        shape[draw(st.integers(0, 4))] = draw(st.sampled_from([0, -1, 5, 2.5]))
    if draw(st.integers(0, 9)) == 0:
        names[draw(st.integers(0, 4))] = draw(st.sampled_from(["tp", "ep", "dp"]))
    base_order = draw(st.sampled_from([NAMES] * 3 + [["pp", "tp", "cp", "gtp_remat", "dp"]]))
    base = dict(zip(NAMES, (tp, cp, gtp, dp, pp), strict=True))
    shared = draw(st.sampled_from([None, [], ["pp"], ["pp"], ["pp"], ["pp", "pp"], ["tp"], ["ep"], ["pp", "dp"]]))
    return (
        [base[name] for name in base_order],
        base_order,
        draw(st.sampled_from(["expert"] * 9 + ["base"])),
        shape,
        names,
        shared,
    )


@given(views(), dims)
@settings(max_examples=2000, deadline=None)
def test_views_and_their_rows(theirs_with_views, arguments, wanted):
    base_shape, base_names, name, shape, names, shared = arguments
    megatrons, own = theirs_with_views.HyperCommGrid(base_shape, base_names), HyperCommGrid(base_shape, base_names)
    found = [outcome(lambda grid=grid: grid.register_view(name, shape, names, shared)) for grid in (megatrons, own)]
    assert found[0] == found[1]
    if found[1] is not None:
        return
    one, other = megatrons._views[name], own._views[name]
    assert all(getattr(one, field) == getattr(other, field) for field in ("name", "shape", "dim_names", "shared_dims"))
    if wanted:
        rows = [outcome(lambda grid=grid: grid.get_rank_enum(wanted, view=name)) for grid in (megatrons, own)]
        assert rows[0] == rows[1]
    known = [axis for axis in wanted if axis in own.dim_names]
    if known:
        assert own._order_dims_for(own.dim_names, known) == megatrons._order_dims_for(own.dim_names, known)


@contextmanager
def this_rank_is(rank):
    """`torch.distributed.get_rank()` without a job: the only thing of torch's that roles ask for."""
    original = dist.get_rank
    dist.get_rank = lambda group=None: rank if group is None else group.rank()
    try:
        yield
    finally:
        dist.get_rank = original


@st.composite
def maps(draw):
    """Grids of one to three modules, side by side, on the same ranks or with a gap, and a rank."""
    offset, modules = 0, {}
    for name in draw(st.permutations(["vision", "audio", "language"]))[: draw(st.integers(1, 3))]:
        names = draw(st.lists(st.sampled_from(["tp", "cp", "dp", "pp"]), min_size=1, max_size=4, unique=True))
        shape = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=len(names), max_size=len(names)))
        modules[name] = shape, names, offset
        size = 1
        for length in shape:
            size *= length
        offset += draw(st.sampled_from([size, size, 0, size + 1]))
    return modules, draw(st.integers(0, offset + 3))


def with_stage_groups(theirs, modules, rank):
    """Megatron's grids, whose stages it asks a live group for: one that knows its rank's place by Megatron's own rows."""
    grids = {}
    for name, (shape, names, offset) in modules.items():
        grid = theirs.HyperCommGrid(shape, names, offset)
        if "pp" in names:
            row = next((row for row in grid.get_rank_enum("pp") if rank in row), [rank])
            place, size = row.index(rank), len(row)
            grid._pgs["pp"] = SimpleNamespace(rank=lambda place=place: place, size=lambda size=size: size)
        grids[name] = grid
    return grids


@given(maps())
@settings(max_examples=2000, deadline=None)
def test_roles(theirs_with_views, world):
    from megatron.core.models.mimo.config.role import RankRole as Megatrons

    modules, rank = world
    others = [name for name in modules if name != "language"]
    own = {name: HyperCommGrid(*arguments) for name, arguments in modules.items()}
    with this_rank_is(rank):
        megatrons = outcome(lambda: Megatrons.build(others, with_stage_groups(theirs_with_views, modules, rank)))
    found = outcome(lambda: RankRole.build(others, own, rank=rank))
    if not isinstance(found, RankRole):
        # Where all modules share their ranks, Megatron does not look at the rank: one outside has a role as well.
        outside = not any(rank in grid._views["base"].grid for grid in own.values())
        assert found == "RuntimeError"
        assert megatrons == "RuntimeError" or (outside and megatrons.mode.value == "colocated")
        return
    assert found.mode.value == megatrons.mode.value
    assert list(found.modules) == list(megatrons.modules)
    for name in ("has_modality_modules", "has_language_module", "modality_module_names"):
        assert getattr(found, name) == getattr(megatrons, name)
    colocated_stages = found.mode.value == "colocated"
    for name in found.modules:
        stages = dict(zip(modules[name][1], modules[name][0], strict=True)).get("pp", 1) if name in modules else 1
        if colocated_stages and stages > 1:  # Megatron's are True, True on every stage; ours are the true ones
            assert megatrons.is_first_stage(name)
            assert megatrons.is_last_stage(name)
            continue
        assert (found.is_first_stage(name), found.is_last_stage(name)) == (
            megatrons.is_first_stage(name),
            megatrons.is_last_stage(name),
        )


def test_the_private_names_of_megatrons_module_are_here(theirs):
    assert ours._is_process_group_member(None) is False
    assert ours._is_process_group_member(dist.GroupMember.NON_GROUP_MEMBER) is False
    if hasattr(theirs, "_is_process_group_member"):
        for group in (None, dist.GroupMember.NON_GROUP_MEMBER, object()):
            assert ours._is_process_group_member(group) == theirs._is_process_group_member(group)
