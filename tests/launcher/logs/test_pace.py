"""When the states of bars and prompts are printed as lines."""

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs.file_tail import FileTail
from launcher.logs.pace import Pace


class Stream:
    """A file that is read after each write, with a clock of its own."""

    def __init__(self, path):
        self.file = path.open("wb", buffering=0)
        self.tail = FileTail(path)
        self.pace = Pace(self.tail, 0.0)

    def write(self, data, at):
        """The states that are printed at a time at which the data has been written."""
        self.file.write(data)
        self.pace.observe(ended=bool([*self.tail.lines()]), now=at)
        return [state.decode() for state in self.pace.due(at)]

    def close(self):
        self.file.close()
        self.tail.close()


@pytest.fixture
def stream(tmp_path):
    with closing(Stream(tmp_path / "log")) as stream:
        yield stream


def test_a_bar_is_printed_after_1_2_4_seconds_and_then_once_a_minute(stream):
    shown = [second for second in range(600) if stream.write(b"\r%d%%" % second, at=float(second))]
    assert shown == [1, 2, 4, 8, 16, 32, 64, 124, 184, 244, 304, 364, 424, 484, 544]


def test_many_bars_one_after_the_other_are_printed_no_more_often(stream):
    shown = [tick for tick in range(10_000) if stream.write(b"\r%d" % tick + b"\n" * (tick % 50 == 49), at=tick / 10)]
    assert 10 < len(shown) < 6 + 1000 / 60 + 1


def test_a_state_that_does_not_change_is_printed_once(stream):
    assert [stream.write(b"\r 50%" * (second == 0), at=float(second)) for second in range(5)] == [[], [" 50%"], [], [], []]


def test_a_prompt_is_printed_when_it_has_been_there_for_a_second(stream):
    assert stream.write(b"name? ", at=10.0) == []
    assert stream.write(b"", at=10.9) == []
    assert stream.write(b"", at=11.0) == ["name? "]
    assert stream.write(b"", at=12.0) == []


def test_a_prompt_does_not_wait_for_the_next_state_of_a_bar(stream):
    for second in range(70):
        stream.write(b"\r%d%%" % second, at=float(second))
    assert stream.write(b"\nname? ", at=70.0) == []
    assert stream.write(b"", at=70.1) == []
    assert stream.write(b"", at=71.2) == ["name? "]


def test_dots_are_printed_as_rarely_as_a_bar(stream):
    shown = [found for tick in range(600) if (found := stream.write(b".", at=tick / 2))]
    assert len(shown) < 15
    assert shown[:2] == [["..."], ["....."]]


@given(st.lists(st.tuples(st.sampled_from([b"part ", b"of a line\n", b""]), st.floats(0.0, 0.99)), max_size=30))
def test_a_line_that_is_written_in_parts_within_a_second_is_no_state(tmp_path_factory, parts):
    with closing(Stream(tmp_path_factory.mktemp("logs") / "log")) as stream:
        now, began = 100.0, None
        for data, pause in parts:
            now += pause
            shown = stream.write(data, at=now)
            began = None if data.endswith(b"\n") else began if began is not None or not data else now
            assert not shown or (began is not None and now - began >= 1.0)


def test_bars_of_two_rows_are_printed_together_and_those_that_changed(stream):
    stream.write(b"\router 0\n\rinner 0\x1b[A", at=0.0)
    assert stream.write(b"", at=1.0) == ["outer 0", "inner 0"]
    assert stream.write(b"\n\rinner 1\x1b[A", at=3.0) == ["inner 1"]
