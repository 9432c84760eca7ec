"""Which module feeds which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import Topology, TopologyError
from mimo_role.topology.module_graph import ModuleGraph
from mimo_role.topology.stage_links import StageId, StageLink, stage_links


def graph_of(after):
    return ModuleGraph.of(list(after), {name: sources for name, sources in after.items() if sources is not None})


@pytest.mark.parametrize(
    ("after", "feeds", "ends"),
    [
        pytest.param(
            {"vision": None, "audio": None, "language": None},
            {"vision": ("language",), "audio": ("language",), "language": ()},
            ("language",),
            id="encoders",
        ),
        pytest.param(
            {"audio": None, "fusion": ["audio"], "vision": None, "language": None},
            {"audio": ("fusion",), "fusion": ("language",), "vision": ("language",), "language": ()},
            ("language",),
            id="chain",
        ),
        pytest.param(
            {"vision": None, "language": None, "image": ["language", "vision"], "speech": ["language"]},
            {"vision": ("language", "image"), "language": ("image", "speech"), "image": (), "speech": ()},
            ("image", "speech"),
            id="decoders",
        ),
        pytest.param(
            {"audio": None, "fusion": ["audio"], "language": ["audio", "fusion"]},
            {"audio": ("fusion", "language"), "fusion": ("language",), "language": ()},
            ("language",),
            id="past an encoder",
        ),
        pytest.param(
            {"language": None, "image": ["language"]}, {"language": ("image",), "image": ()}, ("image",), id="text to image"
        ),
    ],
)
def test_defaults_and_what_is_given(after, feeds, ends):
    graph = graph_of(after)
    assert graph.feeds == feeds
    assert graph.ends == ends
    assert graph.is_default == all(sources is None for sources in after.values())


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ({"vision": ["visoin"], "language": None}, "modules.vision.after=visoin is no other module; there are language"),
        ({"vision": ["vision"], "language": None}, "modules.vision.after=vision is no other module; there are language"),
        (
            {"vision": ["audio"], "audio": ["vision"], "language": None},
            "modules.vision.after=audio is a cycle: vision -> audio -> vision",
        ),
        (
            {"vision": ["language"], "language": ["vision"]},
            "modules.vision.after=language is a cycle: vision -> language -> vision",
        ),
        ({"vision": None, "audio": None, "language": ["vision"]}, "modules.audio: no module takes its output"),
    ],
)
def test_cycles_and_loose_ends_are_refused(after, message):
    with pytest.raises(TopologyError) as caught:
        graph_of(after)
    assert str(caught.value).startswith(message)


@given(st.data())
def test_a_topology_and_its_json_have_the_same_graph(data):
    names = ["vision", "audio", "fusion", "language", "image", "speech"]
    order = data.draw(st.permutations(names))
    later = st.sampled_from([["language"], ["vision", "language"]])
    modules = {name: {} for name in order}
    modules["fusion"] = {"after": data.draw(st.sampled_from(["audio", ["audio", "vision"]]))}
    modules["image"] = {"after": data.draw(later)}
    if data.draw(st.booleans()):  # past the encoder in between
        modules["language"] = {"after": ["vision", "audio", "fusion"]}
    modules["speech"] = {"after": data.draw(st.sampled_from([["language"], ["image"]]))}
    topology = Topology.from_modules(modules)
    again = Topology.from_json(topology.to_json())
    assert again == topology
    assert again.after == topology.after
    reached = {name: topology.module_graph.before(name) for name in order}
    assert all(name not in before for name, before in reached.items())
    assert reached["fusion"] <= reached["language"] <= reached["image"]


def test_a_job_without_after_has_the_digest_that_it_always_had():
    topology = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}})
    assert "after" not in topology.to_json()
    spelled_out = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "after": "vision"}})
    assert spelled_out == topology


def test_links_lead_to_the_next_stage_and_to_every_stage_of_a_module_that_takes_the_output():
    topology = Topology.from_modules({"vision": {"pp": 2}, "language": {"pp": 2}})
    vision, language = ([StageId(name, stage) for stage in range(2)] for name in topology.grids)
    assert set(stage_links(topology)) == {
        StageLink(*vision),
        StageLink(*language),
        StageLink(vision[1], language[0]),
        StageLink(vision[1], language[1]),
    }
