"""Numbers that are written inside an interpolation keep their text too: the `1e-4` of `${oc.env:LR,1e-4}`.

OmegaConf reads them as numbers before a resolver gets them, and `oc.env` then makes the text `0.0001` of that. Here each is
replaced by an interpolation of its own, whose resolver reads it as YAML.
"""

import warnings
from collections.abc import Iterator
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

from launcher.config.literals import Scalar
from launcher.config.yaml_text import parse_yaml

_RESOLVER = "mimo_launch.literal"

_LITERALS = (OmegaConfGrammarParser.INT, OmegaConfGrammarParser.FLOAT, OmegaConfGrammarParser.BOOL)


def with_literals(tree: Any) -> Any:
    """The same tree, in whose texts each number and truth value inside an interpolation keeps its text."""
    if isinstance(tree, dict):
        return {name: with_literals(item) for name, item in tree.items()}
    if isinstance(tree, list):
        return [with_literals(item) for item in tree]
    is_candidate = isinstance(tree, str) and not isinstance(tree, Scalar) and "${" in tree and ":" in tree
    return _with_literals(tree) if is_candidate else tree


def _with_literals(text: str) -> str:
    try:
        found = sorted(_literals(parse(text)))
    except OmegaConfBaseException:
        return text  # OmegaConf refuses it, with the name of its key.
    pieces, end = [], 0
    for first, last in found:
        pieces += [text[end:first], f"${{{_RESOLVER}:'{text[first : last + 1]}'}}"]
        end = last + 1
    return "".join([*pieces, text[end:]])


def _literals(node: Any) -> Iterator[tuple[int, int]]:
    """The places of the numbers and truth values in a syntax tree: first and last character."""
    children = list(node.getChildren()) if hasattr(node, "getChildren") else []
    if isinstance(node, OmegaConfGrammarParser.PrimitiveContext) and len(children) == 1:
        symbol = getattr(children[0], "symbol", None)
        if symbol is not None and symbol.type in _LITERALS:
            yield symbol.start, symbol.stop
    for child in children:
        yield from _literals(child)


def _register() -> None:
    with warnings.catch_warnings():
        # Deprecated in OmegaConf 2.4; its successor is another function in 2.3.
        warnings.simplefilter("ignore")
        OmegaConf.register_new_resolver(_RESOLVER, parse_yaml, replace=True)


_register()
