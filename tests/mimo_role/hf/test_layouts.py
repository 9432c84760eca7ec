"""Models of transformers in many layouts: the losses and gradient norms of transformers' own single process."""

import pytest

import mimo_role
from mimo_role import Topology
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import oracle, steps_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(600)]

# Grids of vision and language, and the modules under FSDP2.
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
FROZEN = ["FSDP2 beside tp", "tp, cp and pp"]
"""Layouts in which the tower does not train either."""
TOWER = {"llava": "model.vision_tower.*", "qwen3_vl": "model.visual.blocks.*"}


def train(found, config, folder, fsdp, freeze):
    found += steps_of(mimo_role.current(), config, folder, fsdp, freeze)


def job(name, *args):
    vision, language, fsdp = LAYOUTS[name]
    layout = "colocated" if name.startswith("colocated") else "non_colocated"
    topology = Topology.from_modules({"vision": vision, "language": language}, layout=layout)
    return Job(train, topology, (*args[:2], fsdp, *args[2:]))


@pytest.fixture(scope="module", params=TOWER)
def steps(request, tmp_path_factory):
    """For each layout and whether the tower is frozen: transformers' steps, and those of each rank. All from one world."""
    config, folder = getattr(small_models, request.param)(), str(tmp_path_factory.mktemp(request.param))
    freeze = {False: (), True: (TOWER[request.param],)}
    expected = {frozen: oracle(config, folder, patterns) for frozen, patterns in freeze.items()}
    cases = [(name, False) for name in LAYOUTS] + [(name, True) for name in FROZEN]
    outcomes = run_jobs(*(job(name, config, folder, freeze[frozen]) for name, frozen in cases), timeout_s=550)
    return {case: (expected[case[1]], ranks) for case, ranks in zip(cases, outcomes, strict=True)}


@pytest.mark.parametrize(
    ("name", "frozen"), [*((name, False) for name in LAYOUTS), *((name, True) for name in FROZEN)], ids=str
)
def test_ten_steps_are_those_of_one_process(steps, name, frozen):
    expected, ranks = steps[name, frozen]
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    assert len(expected) == 10
    for rank in ranks:
        assert rank.found == [pytest.approx(step, rel=1e-12, abs=0) for step in expected]
