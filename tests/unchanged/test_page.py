"""Every row of the tables in docs/guides/torchrun.md names a test that exists."""

import ast
import re
from itertools import pairwise

import pytest

from tests.unchanged.launches import ROOT

PAGE = ROOT / "docs" / "guides" / "torchrun.md"
TEST = re.compile(r"<!-- ([\w/]+\.py)::(\w+) -->")


def rows():
    """The rows of all tables, without their headings, by the beginning of their text."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    of_tables = [line for before, line in pairwise(lines) if before.startswith("|") and re.match(r"\| [^-]", line)]
    return {row.split("|")[1].strip()[:60]: row for row in of_tables}


@pytest.mark.parametrize("row", rows().values(), ids=rows())
def test_a_row_names_a_test(row):
    found = TEST.findall(row)
    assert found
    for file, name in found:
        (path,) = (ROOT / "tests").rglob(file)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
