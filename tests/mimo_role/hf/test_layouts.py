"""Models of transformers in many layouts: the losses and gradient norms of transformers' own single process."""

import pytest

import mimo_role
from mimo_role import Topology
from tests.mimo_role.fresh_worlds import Job, run_jobs
from tests.mimo_role.hf import small_models
from tests.mimo_role.hf.oracle import STEPS, oracle, steps_of

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(900)]

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
FROZEN_STEPS = 3
TOWER = {"llava": "model.vision_tower.*", "qwen3_vl": "model.visual.blocks.*"}


CASES = [(kind, name, False) for kind in TOWER for name in LAYOUTS] + [(kind, name, True) for kind in TOWER for name in FROZEN]


def train(found, config, folder, fsdp, freeze, steps):
    found += steps_of(mimo_role.current(), config, folder, fsdp, freeze, steps)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """For each case: transformers' own steps, and those of each rank. All from one world: transformers is imported once."""
    expected, jobs = {}, []
    for kind, name, frozen in CASES:
        config, count = getattr(small_models, kind)(), FROZEN_STEPS if frozen else STEPS
        folder, freeze = tmp_path_factory.getbasetemp() / f"{kind} {frozen}", (TOWER[kind],) if frozen else ()
        if (kind, frozen) not in expected:
            expected[kind, frozen] = oracle(config, str(folder), freeze, count)
        vision, language, fsdp = LAYOUTS[name]
        layout = "colocated" if name.startswith("colocated") else "non_colocated"
        topology = Topology.from_modules({"vision": vision, "language": language}, layout=layout)
        jobs.append(Job(train, topology, (config, str(folder), fsdp, freeze, count)))
    outcomes = run_jobs(*jobs, timeout_s=850)
    return {case: (expected[case[0], case[2]], ranks) for case, ranks in zip(CASES, outcomes, strict=True)}


@pytest.mark.parametrize(("kind", "name", "frozen"), CASES, ids=str)
def test_steps_are_those_of_one_process(steps, kind, name, frozen):
    expected, ranks = steps[kind, name, frozen]
    assert [rank.errors for rank in ranks] == [""] * len(ranks)
    assert len(expected) == (FROZEN_STEPS if frozen else 10)
    for rank in ranks:
        assert rank.found == [pytest.approx(step, rel=1e-12, abs=0) for step in expected]
