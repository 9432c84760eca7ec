"""Names for Kubernetes: valid, unique, and still those of the config as far as possible."""

import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torchx.schedulers.ids import random_id

from launcher.config.yaml_text import dump_yaml
from launcher.schedulers.kubernetes_names import job_name, pool_names
from launcher.schedulers.submit import dry_run
from tests.launcher.schedulers.plans import CONFIG, request

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SERVICE = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")

names = st.one_of(
    st.text(min_size=1, max_size=200),
    st.from_regex(r"[a-zA-Z0-9_.-]{1,120}", fullmatch=True),
    st.sampled_from(["a", "A", "a_", "a-", "é", "e", "名前", "日本", "-", "_", "0", "42", "x" * 500, "x" * 499 + "y"]),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits-vlm", "digits-vlm"),
        ("My_Job.v2", "my-job-v2"),
        ("--a__b--", "a-b"),
        ("007", "mimo-007"),
        ("Étude naïve", "etude-naive"),
        ("名前", "mimo"),
        ("vlm-" * 20, "vlm-vlm-vlm-vlm-vlm-vlm-vlm-vlm-v-8e5217"),
    ],
)
def test_a_jobs_name_stays_readable(name, expected):
    assert job_name(name, {"llm": 1}) == expected


@pytest.mark.parametrize(
    ("pools", "expected"),
    [
        (["encoders", "llm"], ["encoders", "llm"]),
        (["A100_80GB", "h100-a"], ["a10080gb", "h100a"]),
        (["LLM", "llm"], ["llm674900", "llm"]),
        (["a-b", "a_b", "ab"], ["abd44362", "ab648fa9", "ab"]),
        (["名前", "日本"], ["pool7ec262", "poolcf2abf"]),
        (["large-language-model-nodes"], ["largelangu01dca8"]),
    ],
)
def test_a_pools_name_stays_readable(pools, expected):
    assert [pool_names(pools)[pool] for pool in pools] == expected


@given(st.lists(names, min_size=1, max_size=6, unique=True), names, st.integers(1, 10**6))
def test_what_torchx_and_volcano_make_of_the_names_is_valid_and_unique(pools, name, nodes):
    found = pool_names(pools)
    assert sorted(found) == sorted(pools)
    assert len(set(found.values())) == len(pools)
    job = f"{job_name(name, dict.fromkeys(found.values(), nodes))}-{random_id()}"
    assert SERVICE.fullmatch(job)
    for pool in found.values():
        assert pool.isalnum()
        assert LABEL.fullmatch(f"{job}-{pool}-{nodes - 1}-0")


def test_the_random_suffix_of_torchx_is_no_longer_than_is_assumed(monkeypatch):
    monkeypatch.setattr("torchx.schedulers.ids.random_uint64", lambda: 2**64 - 1)
    assert len(random_id()) == 14


@given(names, names)
def test_two_long_job_names_with_the_same_beginning_differ(first, second):
    begin = "a-long-name-of-a-job-that-does-not-fit-into-a-label"
    made = [job_name(begin + end, {"llm": 1}) for end in (first, second)]
    assert (made[0] == made[1]) == (first == second)


in_configs = names.filter(lambda name: name.strip() and name.isprintable() and "???" not in name)


@settings(max_examples=15, deadline=None)
@given(name=in_configs, pools=st.lists(in_configs, min_size=2, max_size=2, unique=True))
def test_the_manifest_has_valid_names_for_any_names_of_the_config(tmp_path_factory, name, pools):
    folder = tmp_path_factory.mktemp("names")
    config = yaml.safe_load(CONFIG) | {"name": name}
    config["pools"] = dict(zip(pools, config["pools"].values(), strict=True))
    for module, pool in zip(config["modules"].values(), pools, strict=True):
        module["pool"] = pool
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made = request(folder, config=dump_yaml(config), to="kubernetes", image="vlm:1", options=("queue=train",))
        found = yaml.safe_load(dry_run(made))
    job = found["metadata"]["name"]
    assert SERVICE.fullmatch(job)
    for task in found["spec"]["tasks"]:
        assert LABEL.fullmatch(f"{job}-{task['name']}-0")
        labels = task["template"]["metadata"]["labels"]
        assert all(re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value) for value in labels.values())
