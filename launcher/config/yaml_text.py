"""YAML text to a tree and back, in which every scalar keeps the text it was written as.

What YAML reads as text is a `str`; numbers, truth values, dates and null are `Scalar`s. The words and numbers of YAML are
those of OmegaConf's own loader, which makes values without their text and offers no way to add it.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from launcher.config.literals import Scalar

MOST_BY_ALIASES = 10_000
"""The most values that aliases and merge keys may add to those that are written."""

_TAG = "tag:yaml.org,2002:"

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, if PyYAML has it."""


class _Loader(_SafeLoader):  # type: ignore[misc]
    def construct_document(self, node: yaml.Node) -> Any:
        _check_nodes(node)
        return super().construct_document(node)


class _Dumper(yaml.SafeDumper):
    pass


def parse_yaml(text: str) -> Any:
    """Read a YAML text.

    Raises:
        yaml.YAMLError: not YAML, a key that is given twice, or an alias that contains itself or is used too often.
        ValueError, LookupError, AttributeError: a scalar that does not fit its tag.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return Scalar("", None) if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def dump_yaml(tree: Any) -> str:
    """The YAML text of a tree: `parse_yaml` and interpolation give the same tree."""
    text: str = yaml.dump(_escaped(tree), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _scalar(loader: Any, node: yaml.ScalarNode) -> Scalar:
    text = loader.construct_scalar(node)
    try:
        return Scalar(text, yaml.SafeLoader.yaml_constructors[node.tag](loader, node))
    except ValueError:
        if not _is_implicit(loader, text, node.tag):
            raise
        return Scalar(text, math.inf)


def _represent(dumper: Any, data: Scalar) -> yaml.ScalarNode:
    node: yaml.ScalarNode = dumper.represent_scalar(dumper.resolve(yaml.ScalarNode, str(data), (True, False)), str(data))
    return node


def _represent_text(dumper: Any, data: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and reads them as blanks.
    style = '"' if re.search("[\x85\u2028\u2029]", data) else None
    node: yaml.ScalarNode = dumper.represent_scalar(f"{_TAG}str", data, style)
    return node


def _is_implicit(loader: Any, text: str, tag: str) -> bool:
    return bool(loader.resolve(yaml.ScalarNode, text, (True, False)) == tag)


def _escaped(tree: Any) -> Any:
    """The same tree with no text that OmegaConf would interpolate."""
    if isinstance(tree, dict):
        return {name: _escaped(item) for name, item in tree.items()}
    if isinstance(tree, list):
        return [_escaped(item) for item in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if type(tree) is str else tree


def _check_nodes(root: yaml.Node) -> None:
    """Check what PyYAML does not: a key given twice, an alias within itself, and how much aliases multiply.

    Raises:
        yaml.constructor.ConstructorError: one of these.
    """
    sizes: dict[yaml.Node, int | None] = {}

    def size_of(node: yaml.Node) -> int:
        size = sizes.get(node, 0)
        if size is None:
            raise yaml.constructor.ConstructorError(None, None, "an alias (*) of a value that contains it", node.start_mark)
        if size == 0:
            sizes[node] = None
            sizes[node] = size = 1 + sum(map(size_of, _parts(node)))
        return size

    expanded = size_of(root)
    if expanded - len(sizes) > MOST_BY_ALIASES:
        problem = f"aliases (*) add more than {MOST_BY_ALIASES} values"
        raise yaml.constructor.ConstructorError(None, None, problem, root.start_mark)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes directly below one, each as often as it is there."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        found = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in found:
                    problem = f"found duplicate key {key.value}"
                    raise yaml.constructor.ConstructorError(
                        "while constructing a mapping", node.start_mark, problem, key.start_mark
                    )
                found.add(key.value)
            yield from (key, value)


def _add_rules() -> None:
    """What is text, what is a number: `1e-4` is one, as in YAML 1.2; a date and `=` are text."""
    exponent = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
    for cls in (_Loader, _Dumper):
        cls.add_implicit_resolver(f"{_TAG}float", exponent, list("-+0123456789"))
    as_text = {f"{_TAG}timestamp", f"{_TAG}value"}
    _Loader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in as_text] for first, rules in _Loader.yaml_implicit_resolvers.items()
    }
    for kind in ("null", "bool", "int", "float", "timestamp"):
        _Loader.add_constructor(f"{_TAG}{kind}", _scalar)
    # As a value and not as a key, << is text.
    _Loader.add_constructor(f"{_TAG}merge", _SafeLoader.construct_yaml_str)
    _Dumper.add_representer(Scalar, _represent)
    _Dumper.add_representer(str, _represent_text)


_add_rules()
