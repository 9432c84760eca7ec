"""A stream's lines as a terminal would show them."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.terminal.rows import LONGEST_STATE, Rows

# What tqdm writes (4.67) for two nested loops whose inner bar is removed at its end, and for a bar in the third row.
NESTED = (
    b"\repoch:   0%| | 0/2\n\rbatch:   0%| | 0/2\x1b[A\n\rbatch:  50%| | 1/2\x1b[A\n\rbatch: 100%| | 2/2 \x1b[A"
    b"\n\r                 \x1b[A\repoch:  50%| | 1/2\n\rbatch:   0%| | 0/2\x1b[A\n\rbatch:  50%| | 1/2\x1b[A"
    b"\n\r                 \x1b[A\repoch: 100%| | 2/2\repoch: 100%| | 2/2\n"
)
NESTED_AND_LEFT = (
    b"\repoch:   0%|\n\rbatch:   0%|\x1b[A\n\rbatch: 100%|\x1b[A\rbatch: 100%| left\n\repoch:  50%|"
    b"\n\rbatch:   0%|\x1b[A\n\rbatch: 100%|\x1b[A\rbatch: 100%| left\n\repoch: 100%|\repoch: 100%| left\n"
)
THIRD_ROW = b"\n\n\rpart:   0%|\x1b[A\x1b[A\n\n\rpart:  50%|\x1b[A\x1b[A\rpart: 100%|\n"
WRITTEN_BETWEEN = b"\r  0%|\r     \rline 0\n\r  0%|\r 50%|\r     \rline 1\n\r 50%|\r100%|\n"

# A number is put in for #.
PIECES = (
    *("a#", "bc", " ", "line#\n", "x" * 30, "é✓"),
    *("\n", "\r", "\r\n", "\rout#", "\n\rin#\x1b[A", "\n\n\rthird#\x1b[A\x1b[A"),
    *("\x1b[A", "\x1b[2A", "\x1b[F", "\x1b[K", "\x1b[2K", "\x1b[1G", "\x1b[31m"),
    *("\x1b", "\x1b[", "\x1b[2", "A"),
)


def lines_of(data, longest=1 << 20):
    rows = Rows("log", longest)
    return [*rows.feed(data), *rows.finish()]


def cut(data, places):
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        pytest.param(b"", [], id="nothing"),
        pytest.param(b"one\n\n two\nthree", [b"one", b"", b" two", b"three"], id="lines"),
        pytest.param(b"one\r\n\r\ntwo\r\r\n", [b"one", b"", b"two"], id="line ends of Windows"),
        pytest.param(b"\r  0%\r 50%\r100%\n", [b"100%"], id="a bar"),
        pytest.param(b"  0%\r 50%\r100%\r", [b"100%"], id="a bar that returns after its state"),
        pytest.param(b"\r  0%\r 50%", [b" 50%"], id="a bar that is not at its end"),
        pytest.param(b"\r 50%\r    \r", [], id="a bar that was removed"),
        pytest.param(b"\r 50%\r\x1b[K", [], id="a bar that was erased"),
        pytest.param(b"\r 50%\r\x1b[2Kdone\n", [b"done"], id="a bar that was erased for a line"),
        pytest.param(b" 50%\x1b[2K\x1b[1G 60%\x1b[2K\x1b[1G 70%", [b" 70%"], id="a bar that returns by codes"),
        pytest.param(b"\rA 100%\n\rB 100%\n", [b"A 100%", b"B 100%"], id="bars one after the other"),
        pytest.param(b"\r 50%text\n\r 60%", [b" 50%text", b" 60%"], id="a line behind a bar"),
        pytest.param(b"\x1b[31mred\x1b[0m\n", [b"\x1b[31mred\x1b[0m"], id="colors"),
        pytest.param(b"one\x1b[A\n", [b"one"], id="a line that moves the cursor"),
        pytest.param(b"one\n\x1b[Atwo\n", [b"one", b"two"], id="a line over another one"),
        pytest.param(b"\x1b[", [b"\x1b["], id="the beginning of a code"),
        pytest.param(NESTED, [b"epoch: 100%| | 2/2"], id="nested"),
        pytest.param(NESTED_AND_LEFT, [b"batch: 100%| left"] * 2 + [b"epoch: 100%| left"], id="nested, not removed"),
        pytest.param(THIRD_ROW, [b"part: 100%|"], id="the third row"),
        pytest.param(WRITTEN_BETWEEN, [b"line 0", b"line 1", b"100%|"], id="lines between states"),
        pytest.param(NESTED[:65], [b"epoch:   0%| | 0/2", b"batch:  50%| | 1/2"], id="nested, not at the end"),
    ],
)
def test_lines_are_those_that_a_terminal_would_show(data, lines):
    assert lines_of(data) == lines


@given(st.lists(st.text("ab é\t", max_size=8).map(str.encode)))
def test_text_without_codes_is_split_at_line_ends(lines):
    assert lines_of(b"".join(line + b"\n" for line in lines)) == lines


@given(st.lists(st.sampled_from(PIECES), max_size=40), st.lists(st.integers(0, 200)), st.sampled_from([7, 1000]))
def test_lines_and_states_do_not_depend_on_how_the_stream_is_cut(pieces, places, longest):
    data = "".join(piece.replace("#", str(number)) for number, piece in enumerate(pieces)).encode()
    rows, whole = Rows("log", longest), Rows("log", longest)
    found = [line for part in cut(data, places) for line in rows.feed(part)]
    assert found == [*whole.feed(data)]
    assert rows.states() == whole.states()
    assert [*rows.finish()] == [*whole.finish()]


@given(st.binary(), st.lists(st.integers(0, 200)))
def test_lines_of_any_bytes_do_not_depend_on_how_the_stream_is_cut(data, places):
    rows = Rows("log")
    found = [line for part in cut(data, places) for line in rows.feed(part)]
    assert [*found, *rows.finish()] == lines_of(data)


BLOCKS = {
    "line": "line {0}\n",
    "empty": "\n",
    "bar": "\router {0}",
    "inner": "\n\rinner {0}\x1b[A",
    # `tqdm.write` removes both bars for a moment.
    "written": "\r          \r\n\r        \r\x1b[Aline {0}\n\router\n\rinner\x1b[A",
}


@given(st.lists(st.sampled_from(sorted(BLOCKS)), max_size=25), st.lists(st.integers(0, 600)))
def test_no_line_is_lost_or_moved_between_bars_whenever_lines_are_taken(blocks, places):
    data = "".join(BLOCKS[kind].format(number) for number, kind in enumerate(blocks)).encode()
    rows, found = Rows("log"), []
    for part in cut(data, places):
        found += [*rows.feed(part), *rows.settle()]
    found += rows.finish()
    written = [f"line {number}".encode() for number, kind in enumerate(blocks) if kind in ("line", "written")]
    assert [line[line.index(b"line") :] for line in found if b"line" in line] == written


def test_a_line_is_returned_at_once_and_a_bars_last_state_when_the_cursor_has_not_come_back():
    rows = Rows("log")
    assert list(rows.feed(b"line\n\r100%\n")) == [b"line"]
    assert list(rows.settle()) == []
    assert list(rows.settle()) == [b"100%"]
    assert list(rows.finish()) == []


def test_the_cursor_comes_back_to_the_row_of_a_bar():
    rows = Rows("log")
    assert list(rows.feed(b"\router 0\n")) == []
    assert list(rows.settle()) == []
    assert list(rows.feed(b"\rinner 0\x1b[A\router 1")) == []
    assert list(rows.settle()) == []
    assert rows.states() == [b"outer 1", b"inner 0"]


def test_a_line_behind_many_bars_is_returned_before_the_stream_ends():
    rows = Rows("log")
    found = [line for number in range(1000) for line in rows.feed(b"\rbar %d\n" % number)]
    assert found == [b"bar %d" % number for number in range(len(found))]
    assert len(found) > 800


def test_a_state_that_was_shown_is_not_returned_as_a_line_again():
    rows = Rows("log")
    list(rows.feed(b"\r 50%"))
    assert rows.is_new
    assert rows.new_states() == [b" 50%"]
    assert rows.new_states() == []
    assert not rows.is_new
    list(rows.feed(b"\r 60%\r 50%"))
    assert rows.new_states() == []
    assert list(rows.feed(b"\nname? ")) == []
    assert list(rows.settle()) == list(rows.settle()) == []
    assert rows.new_states() == [b"name? "]
    assert list(rows.feed(b"none\nname? \n")) == [b"name? none", b"name? "]


def test_of_a_long_line_the_beginning_is_returned_and_where_the_rest_is():
    (line,) = lines_of("é".encode() * 10 + b"\n", longest=7)
    assert line.decode() == "ééé... (13 more bytes are in log)"


def test_a_long_state_is_shortened_and_its_line_is_returned_whole():
    rows = Rows("log")
    list(rows.feed(b"." * 5000))
    assert rows.new_states() == rows.states() == [b"." * LONGEST_STATE + b"..."]
    assert list(rows.feed(b"\n")) == [b"." * 5000]


def test_a_state_ends_with_a_whole_character():
    rows = Rows("log")
    list(rows.feed("50 €".encode()[:-1]))
    assert rows.states() == [b"50 "]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"\r 50%|#####     |" * 20_000, id="a bar"),
        pytest.param(b"\router\n\rinner\x1b[A" * 2_000, id="two bars"),
        pytest.param(b"x" * 1_000_000, id="a line without an end"),
        pytest.param(b"\n" * 5_000, id="empty lines"),
        pytest.param(b"\r" * 100_000, id="returns"),
    ],
)
def test_little_is_kept_of_a_stream_without_lines(part):
    rows = Rows("log")
    tracemalloc.start()
    for _ in range(5):
        assert all(not line for line in rows.feed(part))
        list(rows.settle())
        rows.states()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 1_500_000
