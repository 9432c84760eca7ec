"""Which ranks differ from the others, and whether the job can run."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.preflight.compare import compare
from launcher.preflight.facts import Facts
from mimo_role import Topology
from tests.launcher.preflight.facts_of import facts_of

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})


def found(facts, *, needs_gpus=False):
    mismatches = compare(facts, needs_gpus=needs_gpus).mismatches
    return [(mismatch.aspect, mismatch.value, mismatch.usual, mismatch.ranks) for mismatch in mismatches]


def test_equal_ranks_have_no_mismatch():
    verdict = compare(facts_of(6), needs_gpus=True)
    assert (verdict.mismatches, verdict.stops) == ([], False)


def test_hosts_and_local_ranks_may_differ():
    assert not compare(facts_of(64, ranks_per_host=7), needs_gpus=True).mismatches


@pytest.mark.parametrize(
    ("changes", "expected", "stops"),
    [
        pytest.param({"topology": "b" * 64}, ("topology", "b" * 12, "a" * 12), True, id="topology"),
        pytest.param({"script": "ba9876543210"}, ("script", "ba9876543210", "0123456789ab"), True, id="script"),
        pytest.param({"script": ""}, ("script", "-", "0123456789ab"), True, id="no script"),
        pytest.param({"mimo_launch": "0.3"}, ("mimo-launch", "0.3", "0.4"), True, id="mimo-launch"),
        pytest.param({"torch": "2.9.1"}, ("torch", "2.9.1", "2.13.0"), True, id="torch"),
        pytest.param({"nccl": "2.20.5"}, ("NCCL", "2.20.5", "2.29.3"), True, id="NCCL"),
        pytest.param({"cuda": "12.8"}, ("CUDA", "12.8", "13.0"), False, id="CUDA"),
        pytest.param({"python": "3.12.1"}, ("Python", "3.12", "3.11"), True, id="Python"),
        pytest.param({"python": "3.11.2"}, ("Python patch", "3.11.2", "3.11.7"), False, id="Python patch"),
        pytest.param({"gpus": 4}, ("visible GPUs", "4", "8"), False, id="GPUs"),
        pytest.param({"resolves": False}, ("own host name", "has no address", "an address"), False, id="host name"),
    ],
)
def test_a_rank_that_differs_is_found(changes, expected, stops):
    verdict = compare(facts_of(6, r3=changes), needs_gpus=False)
    (mismatch,) = verdict.mismatches
    assert ((mismatch.aspect, mismatch.value, mismatch.usual), mismatch.ranks) == (expected, (3,))
    assert (mismatch.breaks, verdict.stops) == (stops, stops)


def test_the_majority_is_usual_even_if_rank_0_differs():
    assert found(facts_of(6, r0={"torch": "2.9"})) == [("torch", "2.9", "2.13.0", (0,))]


def test_of_two_equally_frequent_values_that_of_rank_0_is_usual():
    facts = facts_of(2, r1={"torch": "2.9"})
    assert found(facts) == found(facts[::-1]) == [("torch", "2.9", "2.13.0", (1,))]


def test_several_values_are_several_lines():
    facts = facts_of(6, r1={"torch": "2.9"}, r4={"torch": "2.8"}, r5={"torch": "2.9"})
    assert found(facts) == [("torch", "2.9", "2.13.0", (1, 5)), ("torch", "2.8", "2.13.0", (4,))]


def test_a_rank_without_a_gpu_of_its_own_ends_the_job_where_it_needs_one():
    facts = facts_of(4, r1={"gpus": 1})
    assert ("GPU of the local rank", "1 visible", "one each", (1,)) in found(facts, needs_gpus=True)
    assert compare(facts, needs_gpus=True).stops
    assert not compare(facts, needs_gpus=False).stops


def test_mismatches_that_end_the_job_come_first():
    mismatches = compare(facts_of(6, r1={"gpus": 1}, r2={"torch": "2.9"}, r3={"resolves": False}), needs_gpus=False).mismatches
    assert [each.breaks for each in mismatches] == [True, False, False]


def test_the_table_names_module_and_host():
    facts = facts_of(6, r2={"torch": "2.9"}, r4={"torch": "2.9"}, r5={"gpus": 7})
    text_lines = compare(facts, needs_gpus=False).text(TOPOLOGY, facts).splitlines()
    assert text_lines[0].startswith("the ranks do not fit together; start all nodes from the same config, code and environment")
    assert text_lines[0].endswith("--no-preflight")
    assert text_lines[1].split() == ["what", "found", "others", "have", "ranks", "module", "host"]
    assert text_lines[3].split() == [
        "torch",
        "2.9",
        "2.13.0",
        "2,",
        "4",
        "language.pp0,",
        "language.pp1",
        "host1,",
        "host2",
        "ends",
        "the",
        "job",
    ]
    assert text_lines[4].split() == ["visible", "GPUs", "7", "8", "5", "language.pp1", "host2"]


def test_mismatches_that_do_not_end_the_job_are_a_warning():
    facts = facts_of(6, r2={"cuda": "12.8"})
    text = compare(facts, needs_gpus=False).text(TOPOLOGY, facts)
    assert text.startswith("the ranks differ\n")
    assert "--no-preflight" not in text


def test_a_table_of_many_lines_is_cut():
    facts = facts_of(6, **{f"r{rank}": {"torch": f"2.{rank}", "cuda": f"12.{rank}", "gpus": rank} for rank in range(6)})
    verdict = compare(facts, needs_gpus=False)
    text_lines = verdict.text(TOPOLOGY, facts).splitlines()
    assert len(text_lines) == 1 + 2 + 12 + 1
    assert text_lines[-1].strip() == f"and {len(verdict.mismatches) - 12} more"


@given(st.lists(st.sampled_from(["2.9", "2.13.0", "2.12"]), min_size=1, max_size=12))
def test_each_rank_is_usual_or_a_mismatch(versions):
    facts = facts_of(len(versions), **{f"r{rank}": {"torch": version} for rank, version in enumerate(versions)})
    mismatches = compare(facts, needs_gpus=False).mismatches
    named = {rank: each.value for each in mismatches for rank in each.ranks}
    usual = {version for rank, version in enumerate(versions) if rank not in named}
    assert len(usual) == 1
    assert all(versions[rank] == value for rank, value in named.items())
    assert max(map(versions.count, versions)) == versions.count(usual.pop())


def test_facts_survive_the_store():
    (fact,) = facts_of(1)
    assert Facts.from_json(fact.to_json()) == Facts.from_json(fact.to_json().encode()) == fact
