"""Literals inside interpolations: read as YAML, and nothing else of a text changes."""

import pytest
from omegaconf import OmegaConf

from launcher.config.interpolation import with_literals
from launcher.config.literals import read


def resolved(text):
    tree = OmegaConf.create(with_literals({"a": "x", "b": text}), flags={"allow_objects": True})
    return OmegaConf.to_container(tree, resolve=True)["b"]


@pytest.mark.parametrize(
    "text",
    [
        "12:00:00",
        "a:1,2 ${a}",
        "${a}:1",
        "\\${oc.env:X,1e-4}",
        "${oc.env:X,'1e-4'}",
        '${oc.env:X,"a,1e-4,b"}',
        "${oc.env:X,v1.5}",
        "${oc.env:X,null}",
        "${oc.env:X,",
        "${oc.env:X,1e-4}}${",
    ],
)
def test_a_text_without_literals_inside_interpolations_is_unchanged(text):
    assert with_literals({"k": [text]}) == {"k": [text]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${oc.env:NO_SUCH_VARIABLE,1e-4}", "1e-4"),
        ("${oc.select:no, 1_000 }", "1_000"),
        ("${oc.select:no,${oc.select:no,+1}}", "+1"),
        ("été ${oc.select:no,TRUE}/${oc.select:no,.5}", "été TRUE/.5"),
        ("'${oc.select:no,1.}'", "'1.'"),
        ("${oc.select:no,'${oc.select:no,1.0}'}", "1.0"),
        ("${oc.select:no,\"x '${oc.select:no,1.0}'\"}", "x '1.0'"),
        ("${oc.select:a,1}", "x"),
        ("${oc.create:{k: 1.50, l: [true, 'false']}}", {"k": "1.50", "l": ["true", "false"]}),
    ],
)
def test_a_literal_inside_an_interpolation_keeps_its_text(text, expected):
    assert resolved(text) == expected


def test_a_literal_inside_an_interpolation_keeps_its_value():
    assert (read(resolved("${oc.select:no,1e2}")), read(resolved("${oc.select:no,TRUE}"))) == (100.0, True)
    assert resolved("${oc.select:no,null}") is None
