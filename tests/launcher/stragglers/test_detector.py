import lzma
import math
import random
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.steps.job_steps import JobStep
from launcher.steps.rank_step import ModuleTimes, RankStep
from launcher.stragglers.detector import StragglerDetector, medians_of_others
from launcher.stragglers.evidence import LEAST_RATIO
from launcher.stragglers.straggler import Straggler
from launcher.stragglers.text import describe, describe_changes
from mimo_role import Topology

DP2 = Topology.from_modules({"vision": {"dp": 2}, "language": {"dp": 2}})
LAYOUTS = {
    "dp": DP2,
    "tp": Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}}),
    "cp": Topology.from_modules({"vision": {}, "language": {"cp": 4}}),
    "pp": Topology.from_modules({"vision": {"dp": 4}, "language": {"pp": 4, "dp": 3}}),
    "colocated": Topology.from_modules({"vision": {"dp": 4}, "language": {"tp": 2, "dp": 2}}, layout="colocated"),
}


def job_step(topology, number, compute_s, seconds=1.0, samples=None):
    """`compute_s` by rank, divided between its modules."""
    ranks = {}
    for rank, each in compute_s.items():
        modules = topology.modules_of(rank)
        times = {name: ModuleTimes(each / len(modules)) for name in modules}
        scalars = {} if samples is None else {"samples": float(samples[rank])}
        ranks[rank] = RankStep(rank, number, 0.0, seconds, 0, times, scalars)
    return JobStep(number, ranks)


def detector(topology):
    return StragglerDetector(topology, {rank: f"n{rank // 2}" for rank in range(topology.world_size)})


def detect(topology, steps):
    """Pairs of the step in which something is found, and what; and the detector."""
    found, changes = detector(topology), []
    for step in steps:
        changes += [(step.step, each) for each in found.add(step)]
    return changes, found


def noisy(topology, count, slow=None, begin=0, ratio=1.0, seed=0):
    """Stages differ, ranks vary, and now and then all or one are slow for a step."""
    generator = random.Random(seed)
    for number in range(count):
        together = 2.0 if generator.random() < 0.02 else 1.0
        compute_s = {}
        for rank in range(topology.world_size):
            of_stage = 0.1 * (1 + 3 * sum(coords["pp"] for coords in topology.coords_of(rank).values()))
            pause = 4.0 if generator.random() < 0.01 else 1.0
            is_slow = rank == slow and number >= begin
            compute_s[rank] = of_stage * together * pause * generator.lognormvariate(0, 0.04) * (ratio if is_slow else 1.0)
        yield job_step(topology, number, compute_s)


@pytest.mark.parametrize("topology", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_slow_rank_is_found_in_every_layout_and_no_other(topology, seed):
    slow = topology.world_size - 1
    changes, found = detect(topology, noisy(topology, 220, slow, begin=200, ratio=1.3, seed=seed))
    ((_, straggler),) = changes
    assert (straggler.rank, straggler.label, straggler.node) == (slow, topology.label_of(slow), f"n{slow // 2}")
    assert abs(straggler.since_step - 200) <= 3
    (now,) = found.current
    assert now.ratio == pytest.approx(1.3, abs=0.08)
    assert straggler.until_step is None


def test_ten_thousand_steps_on_a_machine_with_too_few_cores_give_no_alarm():
    """Recorded: two encoders and two language models with steps of 10 ms, on two cores with much other load."""
    lines = lzma.decompress(Path(__file__).with_name("noisy_steps.csv.xz").read_bytes()).decode().splitlines()
    assert len(lines) == 9_999
    steps = []
    for number, line in enumerate(lines):
        *compute, seconds = (int(each) / 1e5 for each in line.split(","))
        steps.append(job_step(DP2, number, dict(enumerate(compute)), seconds))
    # They are as noisy as they are meant to be.
    ratios = [abs(math.log(each.ranks[0].compute_s / each.ranks[1].compute_s)) for each in steps]
    assert median(ratios) > 0.2
    assert sorted(ratios)[len(ratios) * 9 // 10] > 0.8
    assert detect(DP2, steps)[0] == []


@pytest.mark.parametrize("topology", [LAYOUTS["dp"], LAYOUTS["pp"]], ids=["two peers", "more"])
def test_ten_thousand_noisy_steps_give_no_alarm(topology):
    assert detect(topology, noisy(topology, 10_000, seed=9))[0] == []


def test_a_rank_without_peers_is_not_compared():
    topology = Topology.from_modules({"vision": {}, "language": {"pp": 2}})
    assert detect(topology, noisy(topology, 300, 1, begin=100, ratio=3.0))[0] == []


def test_a_slow_rank_among_several_does_not_make_its_peers_fast_or_slow():
    topology = Topology.from_modules({"vision": {}, "language": {"dp": 8}})
    ratios = {3: 1.5, 5: 2.0}
    steps = [job_step(topology, number, {rank: 0.2 * ratios.get(rank, 1.0) for rank in range(9)}) for number in range(60)]
    changes, found = detect(topology, steps)
    assert {each.rank: round(each.ratio, 2) for _, each in changes} == ratios
    assert [each.rank for each in found.current] == [5, 3]
    assert [each.share for each in found.current] == [pytest.approx(0.2), pytest.approx(0.1)]


def test_what_has_ended_is_kept_and_not_current():
    steps = [job_step(DP2, n, {0: 0.2, 1: 0.3 if 50 <= n < 90 else 0.2, 2: 0.2, 3: 0.2}) for n in range(140)]
    changes, found = detect(DP2, steps)
    (_, began), (_, ended) = changes
    assert (began.until_step, ended.until_step, ended.since_step) == (None, 90, 50)
    assert found.current == ()
    assert list(found.found.values()) == [ended]
    assert ended.ratio == pytest.approx(1.5)


def test_ranks_that_do_not_compute_in_a_step_are_left_out_of_it():
    steps = [job_step(DP2, n, {0: 0.2, 1: 0.0 if n % 2 else 0.3, 2: 0.1}) for n in range(100)]
    changes, _ = detect(DP2, steps)
    assert [each.rank for _, each in changes] == [1]


DP3 = Topology.from_modules({"language": {"dp": 3}}, layout="colocated")


def of_lanes(samples, per_sample=(1, 1, 1), fixed=0.0, count=300):
    """Steps of three lanes with other numbers of samples."""
    generator = random.Random(1)
    for number in range(count):
        compute_s = {
            rank: (fixed + 0.05 * samples[rank] * per_sample[rank]) * generator.lognormvariate(0, 0.04) for rank in range(3)
        }
        yield job_step(DP3, number, compute_s, samples=samples)


@pytest.mark.parametrize("fixed", [0.0, 0.1, 10.0], ids=["proportional", "in part", "constant"])
@pytest.mark.parametrize("samples", [(3, 2, 2), (2, 3, 3), (4, 4, 3), (1, 2, 4)])
def test_a_lane_with_more_samples_is_not_slow_where_all_record_them(samples, fixed):
    assert detect(DP3, of_lanes(samples, fixed=fixed))[0] == []


def test_a_slow_lane_is_found_beside_others_with_more_samples():
    ((_, found),) = detect(DP3, of_lanes((3, 2, 2), per_sample=(1, 2, 1)))[0]
    assert (found.rank, round(found.ratio, 1)) == (1, 1.6)


def test_a_lane_with_more_samples_that_are_not_known_is_slow_or_has_more_work():
    steps = [job_step(DP3, number, {0: 0.3, 1: 0.2, 2: 0.2}) for number in range(60)]
    ((_, found),) = detect(DP3, steps)[0]
    assert (found.rank, found.ratio, found.is_from_start) == (0, pytest.approx(1.5), True)
    assert describe(found) == (
        "rank 0 (language.dp0, n0) computes 1.50x its peers' median since step 3, from the start of the attempt: "
        "slower, or more work; 10 % of each step of the whole job"
    )


def test_a_rank_that_becomes_slow_later_is_not_so_from_the_start():
    ((_, found),) = detect(DP2, noisy(DP2, 220, 1, begin=200, ratio=1.5))[0]
    assert not found.is_from_start


def test_the_ratio_of_a_straggler_is_never_less_than_the_least_that_is_reported():
    ratios = [1.0] * 50 + [1.3] * 30 + [1.1] * 200
    steps = [job_step(DP2, number, {0: 0.2, 1: 0.2 * each, 2: 0.2, 3: 0.2}) for number, each in enumerate(ratios)]
    found = detector(DP2)
    seen = [each.ratio for step in steps for each in (found.add(step), found.found.values())[1]]
    assert len(seen) > 100
    assert min(seen) >= LEAST_RATIO


def test_of_those_that_have_ended_the_most_costly_are_kept_and_the_others_counted(monkeypatch):
    monkeypatch.setattr("launcher.stragglers.detector.MOST_ENDED", 4)
    found = detector(DP2)
    for number in range(7 * 400):
        turn, at = divmod(number, 400)
        slow = 0.2 * (1.5 + 0.1 * (turn % 5)) if 300 <= at < 320 else 0.2
        found.add(job_step(DP2, number, {0: 0.2, 1: slow, 2: 0.2, 3: 0.2}))
    assert [(since // 400, round(each.ratio, 1)) for (_, since), each in found.found.items()] == [
        (2, 1.7),
        (3, 1.8),
        (4, 1.9),
        (6, 1.6),
    ]
    assert found.left_out == 3


@given(st.dictionaries(st.integers(0, 50), st.floats(-10, 10), min_size=2, max_size=9))
def test_medians_of_others_are_those_of_the_statistics_module(values):
    for rank, found in medians_of_others(values).items():
        assert found == pytest.approx(median(value for other, value in values.items() if other != rank))


WHO = "rank 713 (language.pp3.tp1, n88) computes"
BEGAN = f"{WHO} 1.42x its peers' median since step 1,200; 11 % of each step of the whole job"
ENDED = f"{WHO} as fast as its peers again since step 1,300; 1.42x since step 1,200"


@pytest.mark.parametrize(("until", "text"), [(None, BEGAN), (1300, ENDED)])
def test_a_straggler_is_one_line(until, text):
    found = Straggler(
        rank=713, label="language.pp3.tp1", node="n88", ratio=1.4201, since_step=1200, until_step=until, share=0.111
    )
    assert describe(found) == text


def test_many_changes_at_once_are_a_few_lines_the_most_costly_first():
    changed = [
        Straggler(rank=rank, label="vision", node="n0", ratio=1.5, since_step=9, share=0.01 * (1 + rank)) for rank in range(20)
    ]
    *lines, rest = describe_changes(changed)
    assert lines == [describe(each) for each in changed[:11:-1]]
    assert rest == "and 12 more ranks slow, or as fast as before"
    assert list(describe_changes(changed[:8])) == [describe(each) for each in changed[7::-1]]
    assert list(describe_changes([])) == []
