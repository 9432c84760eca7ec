import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import EnvironError, GroupOptions, NcclOptions, RankEnviron, Topology
from mimo_role.host import environ

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "pp": 2}})


def variables(rank, **changes):
    found = RankEnviron(topology=TOPOLOGY, rank=rank, run_dir="/runs/a b,c", run_id="1", backend="gloo", timeout_s=1.5)
    return found.to_environ() | {"RANK": str(rank)} | changes


def test_the_contract_of_a_language_rank():
    found = variables(5)
    assert found["MIMO_LAYOUT"] == "non_colocated"
    assert found["MIMO_MODULES"] == "language"
    assert (found["MIMO_HAS_LANGUAGE_MODULE"], found["MIMO_HAS_MODALITY_MODULES"]) == ("1", "0")
    assert json.loads(found["MIMO_COORDS"]) == {"language": {"tp": 1, "cp": 0, "dp": 0, "pp": 1}}
    assert json.loads(found["MIMO_ROLE"]) == {
        "mode": "non_colocated",
        "modules": {"language": {"is_first_stage": False, "is_last_stage": True}},
    }
    assert json.loads(found["MIMO_TOPOLOGY"]) == TOPOLOGY.as_dict()
    assert found["MIMO_TOPOLOGY_DIGEST"] == TOPOLOGY.digest
    assert (found["MIMO_RUN_DIR"], found["MIMO_RUN_ID"]) == ("/runs/a b,c", "1")


@given(
    st.integers(0, TOPOLOGY.world_size - 1),
    st.none() | st.text(),
    st.none() | st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False),
)
def test_both_directions_agree(rank, run_dir, timeout_s):
    there = RankEnviron(topology=TOPOLOGY, rank=rank, run_dir=run_dir, timeout_s=timeout_s)
    assert RankEnviron.from_environ(there.to_environ() | {"RANK": str(rank)}) == there


def test_group_options_are_restored_and_those_of_an_outer_job_replaced():
    options = {"language": GroupOptions(families="megatron", timeout_s=3.0, nccl=NcclOptions(net_name="IB"))}
    there = RankEnviron(topology=TOPOLOGY, rank=0, groups=options).to_environ() | {"RANK": "0"}
    assert RankEnviron.from_environ(there).groups == options
    without = there | RankEnviron(topology=TOPOLOGY, rank=0).to_environ()
    assert RankEnviron.from_environ(without).groups == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MIMO_TOPOLOGY", "{", "MIMO_TOPOLOGY: topology: not JSON"),
        ("MIMO_TOPOLOGY", "{}", "MIMO_TOPOLOGY: topology: layout is missing"),
        ("MIMO_TOPOLOGY_DIGEST", "00", "MIMO_TOPOLOGY_DIGEST: '00' is not"),
        ("MIMO_ROLE", "x", "MIMO_ROLE: malformed"),
        ("MIMO_ROLE", "{}", "MIMO_ROLE: malformed"),
        ("MIMO_ROLE", '{"mode": "colocated", "modules": {}}', "MIMO_ROLE: .* is not rank 0's"),
        ("MIMO_LAYOUT", "colocated", "MIMO_LAYOUT: 'colocated' is not rank 0's"),
        ("MIMO_MODULES", "vision,audio", "MIMO_MODULES: 'vision,audio' is not"),
        ("MIMO_HAS_LANGUAGE_MODULE", "yes", "MIMO_HAS_LANGUAGE_MODULE: 'yes' is not"),
        ("MIMO_HAS_MODALITY_MODULES", "0", "MIMO_HAS_MODALITY_MODULES: '0' is not"),
        ("MIMO_COORDS", "[", "MIMO_COORDS: malformed"),
        ("MIMO_TIMEOUT_S", "-1", "MIMO_TIMEOUT_S: '-1' is not a number of seconds"),
        ("MIMO_TIMEOUT_S", "soon", "MIMO_TIMEOUT_S: 'soon' is not a number of seconds"),
        ("MIMO_GROUPS", "[]", "MIMO_GROUPS: malformed"),
        ("MIMO_GROUPS", '{"language": {"families": "x"}}', "MIMO_GROUPS: malformed .*families='x' is not a list"),
        ("RANK", "one", "RANK: 'one' is not a whole number"),
        ("RANK", "6", "RANK: rank 6 is outside the world of 6 ranks"),
    ],
)
def test_a_malformed_variable_is_named(name, value, message):
    with pytest.raises(EnvironError, match=message) as caught:
        RankEnviron.from_environ(variables(0, **{name: value}))
    assert caught.value.variable == name


@pytest.mark.parametrize("name", ["MIMO_TOPOLOGY", "MIMO_TOPOLOGY_DIGEST", "MIMO_ROLE", "MIMO_MODULES", "RANK"])
def test_a_missing_variable_is_named(name):
    found = variables(0)
    del found[name]
    with pytest.raises(EnvironError, match=f"{name}: not set"):
        RankEnviron.from_environ(found)


def test_ranks_and_sizes_are_read_if_they_are_set(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert (environ.rank(), environ.world_size(), environ.local_rank()) == (None, None, 0)
    assert environ.missing_for_join() == ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert environ.local_rank() == 3
