"""A plan.json with a wrong field: exit code 2 and a message that names the field."""

import json

import pytest

from launcher.cli import main
from launcher.config.loader import load
from launcher.plan.planner import make_plan

GOOD = """\
name: small
layout: non_colocated
modules:
  vision: {dp: 2}
  language: {tp: 2, pp: 2}
entry: {script: train.py}
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit(1)\n")
    return tmp_path / "job.yaml"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="lists of lists"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="nothing"),
        pytest.param('{"entry": {"script": "a", "module": null, "command": null, "args": []}, "groups": []}', id="half a plan"),
    ],
)
def test_a_file_that_is_no_plan_is_one_message_and_exit_code_2(job, capsys, text):
    (job.parent / "plan.json").write_text(text)
    _check(capsys, main(["run", "plan.json"]), "plan.json: not a plan of this mimo-launch (")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"runtime.timeout_s": "x"}, "runtime.timeout_s='x' is not a number up to 1e+07", id="text for seconds"),
        pytest.param({"runtime.grace_s": float("nan")}, "runtime.grace_s=nan is not a number", id="no number for seconds"),
        pytest.param({"nodes": 3}, "nodes=3 is not a list", id="a number for nodes"),
        pytest.param({"nodes": []}, "nodes: they run 0 ranks of 6", id="no nodes"),
        pytest.param(
            {"nodes": [{"name": "a", "pool": "local", "first_rank": 0, "procs": "6"}]},
            "nodes[0].procs='6' is not a whole number",
            id="text for a node's ranks",
        ),
        pytest.param(
            {"nodes": [{"name": "a", "pool": "local", "first_rank": 1, "procs": 6}]},
            "nodes[0]: 6 ranks from rank 1; the next one is rank 0",
            id="a node with other ranks",
        ),
        pytest.param({"nodes": [{"name": "a"}]}, "nodes[0].pool: missing", id="half a node"),
        pytest.param(
            {"runtime.max_restarts": True}, "runtime.max_restarts=true is not a whole number", id="a boolean for a number"
        ),
        pytest.param({"runtime.max_restarts": 1.0}, "runtime.max_restarts=1.0 is not a whole number", id="1.0 for a number"),
        pytest.param({"name": None}, "name=null is not text", id="null for text"),
        pytest.param({"verbose": 1}, "verbose=1 is not true or false", id="a number for a boolean"),
        pytest.param({"runtime.backend": "ncl"}, "runtime.backend='ncl' is not auto or gloo or nccl", id="backend"),
        pytest.param({"env": {"A": 1}}, "env.A=1 is not text", id="a number in env"),
        pytest.param({"env": ["A"]}, "env=['A'] is not a mapping", id="a list for env"),
        pytest.param({"module_env": {"vision": {}}}, "module_env: not that of vision, language", id="half of env"),
        pytest.param({"topology": 3}, "topology=3 is not a mapping", id="a number for the topology"),
        pytest.param({"entry": "train.py"}, "entry='train.py' is not a mapping", id="text for the entry"),
        pytest.param(
            {"entry": {"script": None, "module": None, "command": None, "args": []}},
            "entry: has exactly one of script, module, command; found none of them",
            id="no entry",
        ),
        pytest.param({"groups": {"vision": {"timeout_s": "x"}}}, "groups.vision.timeout_s='x' is not", id="a group's time"),
        pytest.param({"groups": {"vision": {"families": [[1]]}}}, "groups.vision.families[0][0]=1 is not text", id="families"),
        pytest.param({"groups": {"vision": {"nccl": {"max_ctas": 0}}}}, "nccl.max_ctas=0 is less than 1", id="no CTAs"),
        pytest.param({"a\nb": 1}, r"a\nb: unknown", id="a line break in a field"),
    ],
)
def test_a_plan_with_a_wrong_field_is_one_message_that_names_it(job, capsys, changes, message):
    job.write_text(GOOD)
    plan = make_plan(load(job, [])[0], job, [])
    value = json.loads(plan.to_json())
    for name, changed in changes.items():
        *section, field = name.split(".") if name.startswith("runtime.") else [name]
        (value[section[0]] if section else value)[field] = changed
    (job.parent / "plan.json").write_text(json.dumps(value))
    _check(capsys, main(["run", "plan.json"]), message)
    assert not (job.parent / "runs").exists()


def _check(capsys, code, message):
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, "")
    assert message in printed.err
    assert printed.err.startswith("mimo-launch: ")
    assert len(printed.err.splitlines()) == 1
