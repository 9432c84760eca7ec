"""What the picture of a plan shows, and its SVG."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.run_report.layout import FULL_RANKS, MOST_GROUPS, layout_of
from launcher.run_report.layout_svg import layout_svg
from tests.launcher.run_report.made_runs import LARGE, MEDIUM, SMALL, plan_in

SVG = "{http://www.w3.org/2000/svg}"
COLOCATED = """\
name: together
layout: colocated
modules: {vision: {dp: 4}, language: {tp: 2, dp: 2}}
entry: {script: train.py}
"""
CHAIN = """\
name: chain
layout: non_colocated
modules:
  audio:    {dp: 2}
  vision:   {dp: 2, after: [audio]}
  language: {tp: 2}
  decoder:  {after: [language]}
entry: {script: train.py}
"""


def texts(svg):
    return ["".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def titles(svg):
    return [each.text for each in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def test_a_small_plan_has_every_stage_rank_and_bridge(tmp_path):
    layout = layout_of(plan_in(tmp_path, SMALL))
    vision, language = layout.modules
    assert (vision.axes, [stage.ranks for stage in vision.stages]) == ("dp 2", ["0-1"])
    assert (language.axes, [stage.ranks for stage in language.stages]) == ("pp 2", ["2", "3"])
    (bridge,) = layout.bridges
    assert (bridge.source, bridge.target, bridge.lanes) == ("vision", "language", (2, 1))
    ((group,),) = [pool.groups for pool in layout.pools]
    assert [(cell.rank, cell.label) for cell in group.cells] == [
        (0, "vision.dp0"),
        (1, "vision.dp1"),
        (2, "language.pp0"),
        (3, "language.pp1"),
    ]


def test_a_bridge_shows_where_it_crosses_pools_and_where_modules_share_ranks(tmp_path):
    (across,) = layout_of(plan_in(tmp_path, MEDIUM)).bridges
    (together,) = layout_of(plan_in(tmp_path, COLOCATED)).bridges
    assert (across.crosses_pools, across.is_on_same_ranks) == (True, False)
    assert (together.crosses_pools, together.is_on_same_ranks) == (False, True)


def test_a_bridge_that_passes_modules_leads_around_them(tmp_path):
    svg = ElementTree.fromstring(layout_svg(plan_in(tmp_path, CHAIN.replace("tp: 2", "tp: 2, after: [audio, vision]"))))
    boxes = [each for each in svg.iter(f"{SVG}rect") if each.get("rx") == "10" and each.get("class", "").startswith("m")]
    lower_end = max(float(each.get("y")) + float(each.get("height")) for each in boxes)
    ways = [each.get("d") for each in svg.iter(f"{SVG}path") if each.get("class") == "way" and "C" in each.get("d")]
    below = [way for way in ways if float(way.split(" H ")[1].split()[-1]) > lower_end]
    assert (len(ways), len(below)) == (4, 1)


def test_a_module_is_to_the_right_of_those_whose_outputs_it_takes(tmp_path):
    layout = layout_of(plan_in(tmp_path, CHAIN))
    assert {each.name: each.column for each in layout.modules} == {"audio": 0, "vision": 1, "language": 2, "decoder": 3}
    assert [(each.source, each.target) for each in layout.bridges] == [
        ("audio", "vision"),
        ("vision", "language"),
        ("language", "decoder"),
    ]


@pytest.mark.parametrize("config", [SMALL, MEDIUM, COLOCATED, CHAIN], ids=["small", "64 ranks", "colocated", "chain"])
def test_the_svg_names_each_rank_and_has_its_label_as_a_title(tmp_path, config):
    plan = plan_in(tmp_path, config)
    svg = layout_svg(plan)
    shown, titled = texts(svg), titles(svg)
    for rank in range(plan.topology.world_size):
        assert f"rank {rank}" in shown
        assert f"rank {rank}: {plan.topology.label_of(rank)}" in titled


def test_10_240_ranks_are_a_small_picture_with_all_nodes_and_ranks(tmp_path):
    plan = plan_in(tmp_path, LARGE)
    svg = layout_svg(plan)
    assert len(svg.encode()) < 300 * 1024
    assert "8 ranks of language.pp15" in texts(svg)
    assert "72 nodes, ranks 9664-10239" in texts(svg)
    groups = [group for pool in layout_of(plan).pools for group in pool.groups]
    assert [node for group in groups for node in group.nodes] == list(plan.nodes)


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
    st.sampled_from([1, 2, 3, 8]),
)
def test_every_node_is_drawn_once_in_order_or_counted(tmp_path_factory, encoders, dp, tp, pp, procs):
    world = encoders + dp * tp * pp
    config = (
        "name: any\nlayout: non_colocated\n"
        f"modules: {{vision: {{dp: {encoders}}}, language: {{tp: {tp}, dp: {dp}, pp: {pp}}}}}\n"
        f"pools: {{all: {{nodes: {-(-world // procs)}, procs_per_node: {procs}}}}}\nentry: {{script: train.py}}\n"
    )
    plan = plan_in(tmp_path_factory.mktemp("any"), config)
    layout = layout_of(plan)
    (pool,) = layout.pools
    drawn = [node for group in pool.groups for node in group.nodes]
    assert drawn == list(plan.nodes[: len(drawn)])
    assert (len(drawn) == len(plan.nodes)) == (pool.left_out == 0)
    if world > FULL_RANKS:
        assert len(pool.groups) <= MOST_GROUPS
    for group in pool.groups:
        assert all(sum(role.ranks for role in group.contents) == node.procs for node in group.nodes)
    ElementTree.fromstring(layout_svg(plan))


def test_a_long_name_is_shortened_and_whole_in_a_title(tmp_path):
    name = "n" * 300
    svg = layout_svg(plan_in(tmp_path, SMALL.replace("small", name)))
    assert name in titles(svg)
    assert max(map(len, re.findall(r"n+…", svg))) < 100
