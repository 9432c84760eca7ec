"""A rank's line on a terminal that others write to as well."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.terminal.text import text_of


@pytest.mark.parametrize(
    ("line", "text"),
    [
        pytest.param(b"loss 0.1\tstep 2", "loss 0.1\tstep 2", id="text"),
        pytest.param("é ✓ 🚀".encode(), "é ✓ 🚀", id="UTF-8"),
        pytest.param(b"caf\xe9 \xff\xc3", "caf\ufffd \ufffd\ufffd", id="not UTF-8"),
        pytest.param(b"\x1b[1;31mred\x1b[0m \x1b[38:5:1mand\x1b[m", "\x1b[1;31mred\x1b[0m \x1b[38:5:1mand\x1b[m", id="colors"),
        pytest.param(b"\x1b[2J\x1b[Hone\x1b[K\x1b[A\x1b[?25l\x1b[3;4H", "one", id="cursor and screen"),
        pytest.param(b"\x1bcone\x1b7\x1b8\x1bM\x1b(B", "one", id="short codes"),
        pytest.param(b"\x1b]0;title\x07one\x1b]8;;http://x\x1b\\two\x1b]8;;\x1b\\", "onetwo", id="titles and links"),
        pytest.param(b"one\x1b", "one", id="the beginning of a code"),
        pytest.param(b"\x00one\x0e\x0f\x0b\x0c\x7f", "one", id="control characters"),
        pytest.param("one\x9b2J\x85".encode(), "one2J", id="control characters of 8 bits"),
        pytest.param(b"done\x07", "done\x07", id="the bell"),
        pytest.param(b" 10%\b\b\b20%\b\b\b30%", " 30%", id="a counter with backspaces"),
        pytest.param(b"\b\bone\b\b", "one", id="backspaces at both ends"),
    ],
)
def test_codes_that_would_change_other_lines_are_removed(line, text):
    assert text_of(line) == text


@given(st.lists(st.sampled_from([b"\x1b", b"[", b"]", b"2", b";", b"m", b"J", b"?", b"\x07", b"a", b"\b", b"\xc2\x9b"])))
def test_what_remains_of_any_codes_sets_colors_or_is_text(pieces):
    assert not re.search("\x1b(?!\\[[0-?]*[ -/]*m)|[\b\x9b]", text_of(b"".join(pieces)))


@pytest.mark.parametrize("part", [b"x\b", b"\x1b", b"\x1b[", b"\x1b]", b"\x1b[1", b"1"])
@pytest.mark.parametrize("start", [b"", b"x" * 500_000 + b"\b" * 500_000, b"\x1b[", b"\x1b]"])
def test_a_long_line_takes_time_in_proportion(start, part):
    """With quadratic cost it would take minutes."""
    assert len(text_of(start + part * 500_000)) < 2_000_000
