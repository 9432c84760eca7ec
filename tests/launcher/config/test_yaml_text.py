"""YAML that keeps the text of its scalars: the values are OmegaConf's, and what is written reads as the same."""

import copy
import pickle

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from launcher.config.literals import Scalar, read
from launcher.config.yaml_text import MOST_BY_ALIASES, dump_yaml, parse_yaml
from tests.launcher.config.scalars import scalars


@given(scalars)
@example("0x" + "f" * 4000)
def test_what_is_read_is_what_omegaconf_reads(scalar):
    try:
        expected = OmegaConf.create(f"a: {scalar}").a
    except (yaml.YAMLError, ValueError):
        assume(False)
    found = parse_yaml(f"a: {scalar}")["a"]
    assert str(found) == scalar
    assert (type(read(found)), shown(read(found))) == (type(expected), shown(expected))


def shown(value):
    """A value in digits, also nan, and integers of more digits than Python writes in decimal."""
    return hex(value) if isinstance(value, int) else repr(value)


@pytest.mark.parametrize("text", ["~", "null", "Null", ""])
def test_null_keeps_its_text(text):
    found = parse_yaml(f"a: {text}")["a"]
    assert (str(found), read(found)) == (text, None)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n"])
def test_no_text_is_null(text):
    assert read(parse_yaml(text)) is None


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda scalar: pickle.loads(pickle.dumps(scalar))])
def test_a_copy_of_a_scalar_has_its_text_and_its_value(copied):
    found = copied(parse_yaml("0042"))
    assert isinstance(found, Scalar)
    assert (str(found), found.value, repr(found)) == ("0042", 34, "0042")


leaves = st.one_of(
    scalars.map(parse_yaml),
    st.text(),
    st.text(alphabet="ab\\${}.:\n \t'\"", max_size=12),
    st.sampled_from(
        ["0042", "1e-4", "off", "~", "", "2025-11-25", "=", "<<", "${a}", "\\${a}", "\\\\${a", "a: b", "- a", "# a"]
    ),
)
trees = st.dictionaries(
    st.text(alphabet="abc", min_size=1),
    st.recursive(
        leaves,
        lambda below: (
            st.lists(below, max_size=3) | st.dictionaries(st.text(alphabet="ab ${}.:\\", max_size=3), below, max_size=3)
        ),
    ),
)


@settings(deadline=None)
@given(trees)
def test_what_is_written_is_read_as_the_same(tree):
    assume(not any(name.endswith("???") or "???" in str(item) for name, item in tree.items()))
    found = OmegaConf.create(parse_yaml(dump_yaml(tree)) or {}, flags={"allow_objects": True})
    again = OmegaConf.to_container(found, resolve=True)
    assert again == tree
    assert repr(again) == repr(tree)


def test_what_is_written_has_the_same_values_for_other_readers():
    tree = {"a": parse_yaml("0042"), "b": "0042", "c": parse_yaml("off"), "d": "2025-11-25", "e": "=", "f": "1e-4"}
    assert yaml.safe_load(dump_yaml(tree)) == {"a": 34, "b": "0042", "c": False, "d": "2025-11-25", "e": "=", "f": "1e-4"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3", "found duplicate key a"),
        ("{1: a, 1: b}", "found duplicate key 1"),
        ("{a: &x {b: 1}, c: {<<: *x, d: 1, d: 2}}", "found duplicate key d"),
        ("a: &x [*x]", "an alias (*) of a value that contains it"),
        ("a: &x {b: {c: *x}}", "an alias (*) of a value that contains it"),
        ("a: !!int [1]", "expected a scalar node"),
        ("a: !mine 1", "could not determine a constructor"),
        ("{? [a] : b}", "found unhashable key"),
    ],
)
def test_what_has_no_meaning_is_refused(text, problem):
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        parse_yaml(text)
    assert problem in caught.value.problem


def test_a_merge_key_may_be_overridden_and_used_again():
    found = parse_yaml("a: &x {b: 0042, c: 1}\nd: &y {<<: *x, c: 2}\ne: {<<: [*y, *x]}\nf: {<<: *y, b: 3}")
    assert found == {"a": {"b": "0042", "c": "1"}, "d": {"b": "0042", "c": "2"}, "e": {"b": "0042", "c": "2"}} | {
        "f": {"b": "3", "c": "2"}
    }


@pytest.mark.parametrize("item", ["[*a{0}, *a{0}, *a{0}, *a{0}]", "{{<<: [*a{0}, *a{0}, *a{0}, *a{0}]}}"])
def test_aliases_that_multiply_are_refused(item):
    first = "[x, y]" if item.startswith("[") else "{x: 1}"
    lines = [f"k0: &a0 {first}", *(f"k{number + 1}: &a{number + 1} {item.format(number)}" for number in range(10))]
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        parse_yaml("\n".join(lines))
    assert caught.value.problem == f"aliases (*) add more than {MOST_BY_ALIASES} values"


def test_a_long_list_without_aliases_is_read():
    assert len(parse_yaml(f"[{', '.join(['0042'] * (MOST_BY_ALIASES + 1))}]")) == MOST_BY_ALIASES + 1


@pytest.mark.parametrize("text", ["!!bool x", "!!int ''", "!!float ''", "!!int x", "!!timestamp x"])
def test_a_scalar_that_does_not_fit_its_tag_is_refused(text):
    with pytest.raises((ValueError, LookupError, AttributeError)):
        parse_yaml(text)
