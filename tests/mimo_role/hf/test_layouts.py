"""Models of transformers in many layouts: the losses and gradient norms of transformers' own single process."""

import pytest

from mimo_role import Topology
from mimo_role.testing import run_ranks
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import layout_run, oracle

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

FREEZE = ("model.vision_tower.*", "model.visual.blocks.*")

# Grids of vision and language, the modules under FSDP2, and the layout.
LAYOUTS = {
    "dp": ({"dp": 2}, {"dp": 2}, ()),
    "uneven dp": ({"dp": 3}, {"dp": 2}, ()),
    "tp": ({}, {"tp": 2}, ()),
    "pp": ({"dp": 2}, {"pp": 2}, ()),
    "pp of four stages": ({}, {"pp": 4}, ()),
    "cp": ({}, {"cp": 2}, ()),
    "cp of three": ({"dp": 2}, {"cp": 3}, ()),
    "FSDP2": ({"dp": 2}, {"dp": 2}, ("vision", "language")),
    "FSDP2 beside tp": ({"dp": 2}, {"tp": 2, "dp": 2}, ("language",)),
    "FSDP2 over dp and cp": ({"dp": 2}, {"cp": 2, "dp": 2}, ("language",)),
    "tp, cp and pp": ({}, {"tp": 2, "cp": 2, "pp": 2}, ()),
    "colocated": ({"dp": 4}, {"tp": 2, "dp": 2}, ()),
    "colocated pp": ({"dp": 2}, {"pp": 2}, ()),
}


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def model(request, tmp_path_factory):
    """A config, a folder with weights, and what transformers computes with them."""
    config, folder = getattr(small_models, request.param)(), str(tmp_path_factory.mktemp(request.param))
    return config, folder, oracle(config, folder)


def found_in(model, vision, language, fsdp, colocated=False, **settings):
    config, folder, _ = model
    layout = "colocated" if colocated else "non_colocated"
    topology = Topology.from_modules({"vision": vision, "language": language}, layout=layout)
    ranks = run_ranks(layout_run, topology.world_size, topology, config, folder, fsdp, timeout_s=200, **settings)
    assert all(found == ranks[0] for found in ranks)
    return ranks[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_ten_steps_are_those_of_one_process(model, name):
    vision, language, fsdp = LAYOUTS[name]
    found = found_in(model, vision, language, fsdp, colocated=name.startswith("colocated"))
    assert len(found) == 10
    assert found == [pytest.approx(expected, rel=1e-12, abs=0) for expected in model[2]]
