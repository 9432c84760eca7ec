"""The smallest world that has every kind of rank."""

import json
import re
import shlex

import pytest
from hypothesis import given

from launcher.cli import main
from launcher.rehearse.kinds import kinds_of
from launcher.rehearse.shrink import overrides_of, smaller_sizes
from mimo_role import Topology
from tests.mimo_role.worlds import topologies


def shrunk(topology):
    """The topology with smaller dp; only for modules that have ranks of their own."""
    dp = smaller_sizes(topology)
    modules = {
        name: {axis: grid.axis_size(axis) for axis in grid.dim_names} | {"dp": dp[name]}
        for name, grid in topology.grids.items()
    }
    for name, grid in topology.expert_grids.items():
        modules[name] |= {axis: grid.axis_size(axis) for axis in ("ep", "expt_tp")}
    return Topology.from_modules(modules)


def positions(topology):
    """The kinds, without the numbers of other modules' lanes."""
    return {re.sub(r", \d+ of \w+'s lanes", "", kind.name) for kind in kinds_of(topology)}


def test_a_large_world_keeps_first_middle_and_last_lanes():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8}})
    assert smaller_sizes(large) == {"vision": 4, "language": 3}
    small = shrunk(large)
    assert small.world_size == 4 + 3 * 64
    assert positions(small) == positions(large)


def test_experts_still_divide_a_stage():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"tp": 8, "dp": 144, "pp": 8, "ep": 16}})
    assert smaller_sizes(large)["language"] == 4
    assert {kind.stage for kind in kinds_of(shrunk(large))} == {kind.stage for kind in kinds_of(large)}


def test_multiples_stay_multiples():
    large = Topology.from_modules({"vision": {"dp": 1024}, "language": {"dp": 512}})
    assert smaller_sizes(large) == {"vision": 6, "language": 3}


def test_modules_on_the_same_ranks_shrink_together():
    large = Topology.from_modules({"vision": {"dp": 512}, "language": {"tp": 4, "dp": 128}}, layout="colocated")
    assert smaller_sizes(large) == {"vision": 12, "language": 3}


@given(topologies(experts=True))
def test_no_module_grows_and_none_loses_a_position(topology):
    sizes = smaller_sizes(topology)
    for name, grid in topology.grids.items():
        assert 1 <= sizes[name] <= grid.axis_size("dp")
        assert (sizes[name] >= 3) or grid.axis_size("dp") < 3 or "gtp_remat" in grid.dim_names


def test_overrides_put_the_world_on_this_machine():
    topology = Topology.from_modules({"vision": {"dp": 8}, "language": {"dp": 8}})
    assert overrides_of(topology, has_pools=False) == ["modules.vision.dp=3", "modules.language.dp=3"]
    assert overrides_of(topology, has_pools=True)[2:] == [
        "pools=null",
        "modules.vision.pool=null",
        "modules.language.pool=null",
    ]


@pytest.mark.parametrize(
    ("given", "has_pools", "kept"),
    [
        pytest.param(["modules.language.tp=4", "modules.vision.dp=8"], False, ["modules.language.tp=4"], id="a replaced dp"),
        pytest.param(["modules.vision={dp: 8}"], False, ["modules.vision={dp: 8}"], id="a mapping, of which dp changes"),
        pytest.param(["modules.vision.dpx=8"], False, ["modules.vision.dpx=8"], id="the same beginning"),
        pytest.param(["modules.vision.pool=a", "pools.a.nodes=2", "name=x"], True, ["name=x"], id="pools"),
        pytest.param(["modules.vision.pool=a"], False, ["modules.vision.pool=a"], id="without pools"),
    ],
)
def test_the_users_own_overrides_come_first_unless_they_are_replaced(given, has_pools, kept):
    topology = Topology.from_modules({"vision": {"dp": 8}, "language": {"dp": 8}})
    smaller = overrides_of(topology, has_pools=has_pools)
    assert overrides_of(topology, given, has_pools=has_pools) == kept + smaller


@pytest.fixture
def _job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    config = "name: job\nlayout: non_colocated\nmodules: {vision: {dp: 2}, language: {tp: 2}}\nentry: {script: train.py}\n"
    (tmp_path / "job.yaml").write_text(config)


@pytest.mark.usefixtures("_job")
def test_the_printed_line_is_complete_and_a_shell_splits_it_into_the_same_job(capsys):
    large = ["modules.language={tp: 4, pp: 2}", "modules.vision.dp=1024", "modules.language.dp=1152", "name=two words"]
    assert main(["rehearse", *large, "--shrink"]) == 0
    words = shlex.split(capsys.readouterr().out)
    assert words == [large[0], large[3], "modules.vision.dp=3", "modules.language.dp=4"]
    assert main(["plan", *words, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["topology"]["world_size"] == 3 + 4 * 4 * 2


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize("option", ["--traffic", "--memory"])
def test_shrink_has_nothing_that_other_tables_could_show(capsys, option):
    assert main(["rehearse", "--shrink", option]) == 2
    error = capsys.readouterr().err
    assert error == f"mimo-launch: --shrink runs nothing, so there is nothing for {option} to print; leave out one of them\n"
