"""The JSON Schema that editors check configs by."""

import json
from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.config.json_schema import SCHEMA_FILE, job_schema

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[3]
CONFIGS = sorted([*ROOT.glob("examples/*/*.yaml"), *ROOT.glob("launcher/templates/*/*.yaml")])

GOOD = {
    "name": "job",
    "layout": "non_colocated",
    "modules": {"vision": {"dp": 2}, "language": {"tp": 2, "dp": "auto"}},
    "entry": {"script": "train.py"},
}


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft7Validator.check_schema(job_schema())
    return jsonschema.Draft7Validator(job_schema())


@pytest.mark.parametrize("file", [SCHEMA_FILE, ROOT / "docs" / "job.schema.json"], ids=["package", "docs"])
def test_the_schema_files_are_up_to_date(file):
    """After a change of the schema: mimo-launch schema > launcher/config/job.schema.json, and copy it to docs/."""
    assert json.loads(file.read_text(encoding="utf-8")) == job_schema()


def test_the_command_prints_the_schema(capsys):
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == SCHEMA_FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_configs_of_examples_and_templates_are_valid(validator, path):
    validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"modules": {"vision": {"dp": "${oc.env:N}"}, "language": {}}}, id="an interpolation for a number"),
        pytest.param({"layout": "${oc.env:LAYOUT}"}, id="an interpolation for a word"),
        pytest.param({"args": ["--lr", 0.1, 3, "${name}"]}, id="numbers as arguments"),
        pytest.param({"env": {"A": True}}, id="a truth value as text"),
        pytest.param({"pools": None}, id="null for an optional key"),
        pytest.param({"pools": {"a": {"procs_per_node": 4, "slurm": {"exclusive": True, "gres": ["gpu:4"]}}}}, id="options"),
        pytest.param({"modules": {"language": {"groups": {"families": [["dp", "cp"]]}}}}, id="families as a list"),
        pytest.param({"modules": {"language": {"groups": {"families": "megatron"}}}}, id="families as a word"),
    ],
)
def test_valid_values_pass(validator, changes):
    validator.validate(GOOD | changes)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        pytest.param({"modulez": {}}, [], id="a misspelt key"),
        pytest.param({"modules": {"vision": {"tpp": 2}}}, ["modules", "vision"], id="a misspelt axis"),
        pytest.param({"modules": {"vision": {"dp": "most"}}}, ["modules", "vision", "dp"], id="text for dp"),
        pytest.param({"layout": "colocate"}, ["layout"], id="a misspelt layout"),
        pytest.param({"runtime": {"timeout_s": "soon"}}, ["runtime", "timeout_s"], id="text for seconds"),
        pytest.param({"pools": {"a": {"nodes": 2}}}, ["pools", "a"], id="a missing key"),
        pytest.param({"env": {"A": None}}, ["env", "A"], id="null for text"),
    ],
)
def test_mistakes_are_found_at_their_key(validator, changes, path):
    (error,) = validator.iter_errors(GOOD | changes)
    deepest = jsonschema.exceptions.best_match([error])
    assert path == list(deepest.absolute_path)[: len(path)]


def test_every_key_has_a_description(validator):
    def check(schema, key):
        for name, item in schema.get("properties", {}).items():
            assert item.get("description"), f"{key}.{name}"
        for choice in [*schema.get("properties", {}).values(), *schema.get("anyOf", []), schema.get("additionalProperties")]:
            if isinstance(choice, dict):
                check(choice, key)

    check(validator.schema, "job")
