"""Which layouts are compared."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.advise import candidates as module
from launcher.advise.candidates import Axes, candidates, sizes_of
from mimo_role import ModuleSizes, Topology
from tests.mimo_role.worlds import topologies

ONE = (Axes(1, 1),)


def shown(found):
    return [" ".join(f"{name}:tp{s.tp},pp{s.pp},dp{s.dp}" for name, s in layout.items()) for layout in found.layouts]


def test_all_splits_of_two_modules():
    present = {"vision": ModuleSizes(), "language": ModuleSizes(dp=3)}
    found = candidates(present, 4, {"vision": ONE, "language": ONE}, colocated=False)
    assert shown(found) == [f"vision:tp1,pp1,dp{ranks} language:tp1,pp1,dp{4 - ranks}" for ranks in (1, 2, 3)]
    assert found.multiple == 1


def test_modules_that_share_ranks_have_as_many_of_them():
    present = {"vision": ModuleSizes(), "audio": ModuleSizes(colocate_with="vision"), "language": ModuleSizes(dp=2)}
    allowed = {"vision": ONE, "audio": (Axes(1, 1), Axes(1, 2)), "language": (Axes(2, 1),)}
    assert shown(candidates(present, 4, allowed, colocated=False)) == [
        "vision:tp1,pp1,dp2 audio:tp1,pp1,dp2 language:tp2,pp1,dp1",
        "vision:tp1,pp1,dp2 audio:tp1,pp2,dp1 language:tp2,pp1,dp1",
    ]


def test_in_a_colocated_layout_all_modules_keep_all_ranks():
    present = {"vision": ModuleSizes(dp=4), "language": ModuleSizes(pp=2, dp=2)}
    allowed = {"vision": ONE, "language": (Axes(1, 2), Axes(1, 4), Axes(1, 3))}
    assert shown(candidates(present, 4, allowed, colocated=True)) == [
        "vision:tp1,pp1,dp4 language:tp1,pp2,dp2",
        "vision:tp1,pp1,dp4 language:tp1,pp4,dp1",
    ]


@given(
    st.integers(2, 12),
    st.lists(st.lists(st.builds(Axes, st.integers(1, 2), st.integers(1, 3)), min_size=1), min_size=2, max_size=3),
)
@settings(deadline=None)
def test_no_layout_is_left_out_and_none_comes_twice(world, axes):
    names = ["vision", "audio", "language"][-len(axes) :]
    present = {name: ModuleSizes() for name in names}
    allowed = {name: tuple(dict.fromkeys(of_one)) for name, of_one in zip(names, axes, strict=True)}
    found = shown(candidates(present, world, allowed, colocated=False))
    expected = set()
    for chosen in product(*allowed.values()):
        for lanes in product(range(1, world + 1), repeat=len(names)):
            if sum(each.tp * each.pp * dp for each, dp in zip(chosen, lanes, strict=True)) == world:
                words = zip(names, chosen, lanes, strict=True)
                expected.add(" ".join(f"{name}:tp{each.tp},pp{each.pp},dp{dp}" for name, each, dp in words))
    assert sorted(found) == sorted(expected)


def test_of_too_many_layouts_those_in_multiples_are_compared(monkeypatch):
    monkeypatch.setattr(module, "MOST", 10)
    present = {"vision": ModuleSizes(), "audio": ModuleSizes(), "language": ModuleSizes()}
    found = candidates(present, 17, dict.fromkeys(present, ONE), colocated=False)
    assert (found.multiple, len(found.layouts)) == (4, 6)
    assert all(layout["vision"].dp % 4 == layout["audio"].dp % 4 == 0 for layout in found.layouts)
    assert all(sum(sizes.dp for sizes in layout.values()) == 17 for layout in found.layouts)


@pytest.mark.parametrize("experts", [False, True])
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_sizes_of_a_world_make_the_same_grids_again(experts, data):
    topology = data.draw(topologies(experts=experts))
    again = Topology.from_modules(sizes_of(topology), layout=topology.layout)
    assert dict(again.grids) == dict(topology.grids)
    assert {name: set(after) for name, after in again.after.items()} == {
        name: set(after) for name, after in topology.after.items()
    }
    assert dict(again.expert_grids) == dict(topology.expert_grids)
