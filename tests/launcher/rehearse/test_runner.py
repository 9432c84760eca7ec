"""The order in which kinds are rehearsed."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given

from launcher.rehearse.kinds import kinds_of
from launcher.rehearse.runner import run_all, waves
from mimo_role import Topology
from tests.mimo_role.worlds import topologies


@given(topologies(experts=True))
def test_each_kind_runs_once_and_the_first_of_its_stage_before_it(topology):
    kinds = kinds_of(topology)
    found = list(waves(kinds))
    assert sorted(kind.name for wave in found for kind in wave) == sorted(kind.name for kind in kinds)
    wave_of = {kind.name: number for number, wave in enumerate(found) for kind in wave}
    for kind in kinds:
        first = next(each for each in kinds if each.stage == kind.stage)
        assert kind is first or wave_of[first.name] < wave_of[kind.name]


def test_the_first_kind_of_a_stage_runs_beside_the_others_of_the_stage_before():
    topology = Topology.from_modules({"vision": {"dp": 3}, "language": {"dp": 3, "pp": 2}})
    found = [[(kind.stage, kind.ranks[0]) for kind in wave] for wave in waves(kinds_of(topology))]
    stage = {name: [rank for rank in range(9) if name in topology.label_of(rank)] for name in ("vision", "pp0", "pp1")}
    assert found == [
        [("vision", stage["vision"][0])],
        [("vision", rank) for rank in stage["vision"][1:]],
        [("language.pp0", stage["pp0"][0])],
        [("language.pp1", stage["pp1"][0]), *(("language.pp0", rank) for rank in stage["pp0"][1:])],
        [("language.pp1", rank) for rank in stage["pp1"][1:]],
    ]


@dataclass
class Result:
    """What the runner looks at."""

    kind: Any
    lacks_objects: bool
    record: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("known", "passes"),
    [
        pytest.param([3, 3], 2, id="nothing new"),
        pytest.param([3, 5, 9, 9], 4, id="more, and then nothing new"),
        pytest.param([3, 5, 3, 5], 3, id="now more, now less"),
    ],
)
def test_kinds_that_lack_objects_run_again_while_more_is_known_than_ever_before(known, passes):
    kinds, number, reported = kinds_of(Topology.from_modules({"vision": {"dp": 1}, "language": {"dp": 1}})), count(), []

    def run_wave(wave, _earlier):
        pass_number = next(number) // len(kinds)
        return [Result(kind, True, {"objects_known": known[pass_number]}) for kind in wave]

    run_all(kinds, run_wave, reported.append)
    assert next(number) == passes * len(kinds)
    assert sorted(result.kind.name for result in reported) == sorted(kind.name for kind in kinds)
