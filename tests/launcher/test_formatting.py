"""Ranks, counts and lists in messages."""

import pytest

from launcher import formatting
from mimo_role import Topology

TOPOLOGY = Topology.from_modules({"vision": {"dp": 4}, "language": {"tp": 2, "pp": 2, "dp": 3}})


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([], ""), ([7], "7"), ([3, 1, 2], "1-3"), ([0, 1, 4, 6, 7, 8], "0-1, 4, 6-8")],
)
def test_consecutive_ranks_are_a_range(ranks, text):
    assert formatting.ranges(ranks) == text


def test_a_few_ranks_are_named_and_many_are_counted_by_stage():
    assert formatting.describe_ranks(TOPOLOGY, [5, 0]) == "rank 0 (vision.dp0), rank 5 (language.pp0.dp0.tp1)"
    assert formatting.describe_ranks(TOPOLOGY, range(2, 8)) == "2 of vision (ranks 2-3), 4 of language.pp0 (ranks 4-7)"


def test_of_a_long_list_the_first_names_are_shown():
    names = [f"node{number}" for number in range(10)]
    assert formatting.listed(names[:8]) == ", ".join(names[:8])
    assert formatting.listed(names) == f"{', '.join(names[:8])} and 2 more"
    assert formatting.listed(names, 2) == "node0, node1 and 8 more"


def test_one_thing_is_singular():
    assert [formatting.counted(number, "rank") for number in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]


def test_text_of_the_user_is_printed_on_one_line_and_not_at_length():
    assert formatting.printable("a\nb\x1b[31m é") == "a\\nb\\x1b[31m é"
    assert formatting.shortened("x" * 200) == "x" * 200
    assert formatting.shortened("x" * 201) == "x" * 200 + "..."


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB"), (2 << 40, "2.0 TiB")],
)
def test_bytes_are_shown_in_the_largest_unit(size, text):
    assert formatting.bytes_shown(size) == text
