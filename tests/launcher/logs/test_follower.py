"""Lines of the ranks' output, printed while the files grow."""

import io
import os
import subprocess
import sys
import time

import pytest

from launcher.logs.followed import Followed
from launcher.logs.follower import Follower
from launcher.logs.states import StatesAsLines, StatesInPlace
from launcher.terminal.bottom_lines import BottomLines
from tests.launcher.terminal.screen import Screen

LIMIT_S = 60.0


def prefix(ranks):
    return f"[{','.join(map(str, ranks))}]"


def following(files, fold_s=0.0, states=None):
    """A follower of files, each given by its path and where it is printed; the first is rank 0's."""
    follower = Follower(prefix, fold_s, states or StatesAsLines())
    follower.follow([Followed(path, rank, sink) for rank, (path, sink) in enumerate(files)])
    return follower


def wait_for(condition):
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_follower_prints_files_that_appear_later(tmp_path):
    sink = io.StringIO()
    follower = following([(tmp_path / "a", sink), (tmp_path / "never", sink)])
    (tmp_path / "a").write_bytes(b"one\ntw")
    with (tmp_path / "a").open("ab") as file:
        file.write(b"o\nthree")
    follower.stop()
    assert sink.getvalue() == "[0] one\n[0] two\n[0] three\n"


def test_of_a_progress_bar_the_last_state_is_printed(tmp_path):
    (tmp_path / "a").write_bytes(b"\r  0%|\r 50%|#\r100%|##\nwindows\r\n\r\n")
    sink = io.StringIO()
    following([(tmp_path / "a", sink)]).stop()
    assert sink.getvalue() == "[0] 100%|##\n[0] windows\n[0] \n"


def test_a_follower_stops_while_a_file_still_grows(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        writer = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 1000)"], stdout=file)
    try:
        sink = io.StringIO()
        follower = following([(tmp_path / "a", sink)])
        wait_for(sink.getvalue)
        follower.stop()
    finally:
        writer.kill()
        writer.wait()


def test_a_sink_that_fails_does_not_stop_the_others(tmp_path):
    (tmp_path / "a").write_text("one\n")
    closed, sink = io.StringIO(), io.StringIO()
    closed.close()
    following([(tmp_path / "a", closed), (tmp_path / "a", sink)]).stop()
    assert sink.getvalue() == "[1] one\n"


def test_a_bar_and_a_prompt_without_line_ends_are_printed_while_the_ranks_run(tmp_path):
    sink = io.StringIO()
    follower = following([(tmp_path / "a", sink), (tmp_path / "b", sink)])
    (tmp_path / "a").write_bytes(b"\r 40%\r 42%")
    (tmp_path / "b").write_bytes(b"name? ")
    wait_for(lambda: sink.getvalue().count("\n") == 2)
    assert sorted(sink.getvalue().splitlines()) == ["[0]  42%", "[1] name? "]
    follower.stop()
    assert sink.getvalue().count("\n") == 2


def test_equal_states_of_several_ranks_are_folded(tmp_path):
    sink = io.StringIO()
    for name in "ab":
        (tmp_path / name).write_bytes(b"\r 42%")
    follower = following([(tmp_path / "a", sink), (tmp_path / "b", sink)], fold_s=LIMIT_S)
    wait_for(sink.getvalue)
    follower.stop()
    assert sink.getvalue() == "[0,1]  42%\n"


def test_on_a_terminal_a_state_is_redrawn_below_the_lines(tmp_path):
    screen = Screen()
    in_place = StatesInPlace(BottomLines(screen), prefix)
    follower = following([(tmp_path / "a", screen), (tmp_path / "b", screen)], states=in_place)
    (tmp_path / "a").write_bytes(b"\r 40%")
    (tmp_path / "b").write_bytes(b"\r 40%")
    wait_for(lambda: screen.shown == ["[0,1]  40%"])
    with (tmp_path / "a").open("ab") as file:
        file.write(b"\r 50%")
    wait_for(lambda: screen.shown == ["[0]  50%", "[1]  40%"])
    with (tmp_path / "b").open("ab") as file:
        file.write(b"\r      \ra line\n")
    wait_for(lambda: screen.shown == ["[1] a line", "[0]  50%"])
    follower.catch_up()
    follower.stop()
    assert screen.shown == ["[1] a line", "[0]  50%"]


def test_a_message_is_printed_where_bars_were(tmp_path):
    screen = Screen()
    (tmp_path / "a").write_bytes(b"\r 40%")
    follower = following([(tmp_path / "a", screen)], states=StatesInPlace(BottomLines(screen), prefix))
    wait_for(lambda: screen.shown == ["[0]  40%"])
    follower.stop()
    screen.write("failed\n")
    assert screen.shown == ["[0]  40%", "failed"]


WRITER = """
import sys

sys.stderr = open(sys.argv[1], "w", buffering=1)
for number in range(2000):
    sys.stderr.write("\\r%3d%%|#####     |" % (number // 20))
    if number % 7 == 0:
        sys.stderr.write("\\r                \\rline %d\\n" % number)
    if number % 13 == 0:
        sys.stderr.write("\\n\\rinner %d\\x1b[A" % number)
"""


@pytest.mark.parametrize("in_place", [False, True])
def test_no_line_between_the_states_of_bars_is_lost(tmp_path, in_place):
    screen = Screen()
    states = StatesInPlace(BottomLines(screen), prefix) if in_place else StatesAsLines()
    follower = following([(tmp_path / name, screen) for name in "abc"], states=states)
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path / name]) for name in "abc"]
    assert [writer.wait(LIMIT_S) for writer in writers] == [0, 0, 0]
    follower.stop()
    for rank in range(3):
        lines = [line for line in screen.shown if line.startswith(f"[{rank}] line")]
        assert lines == [f"[{rank}] line {number}" for number in range(0, 2000, 7)]


def test_what_is_left_at_the_end_is_printed_in_parts(tmp_path):
    """Two files of 5 MB: each rank's next part waits for the one of the other."""
    lines, sink = 50_000, io.StringIO()
    for name in "ab":
        (tmp_path / name).write_bytes(b"".join(b"%s %d %s\n" % (name.encode(), number, b"x" * 90) for number in range(lines)))
    follower = Follower(prefix, 0.0, StatesAsLines())
    follower.follow([Followed(tmp_path / name, rank, sink) for rank, name in enumerate("ab")])
    follower.stop()
    found = sink.getvalue().splitlines()
    for rank, name in enumerate("ab"):
        assert [line for line in found if line.startswith(f"[{rank}]")] == [
            f"[{rank}] {name} {number} {'x' * 90}" for number in range(lines)
        ]
    last_of_a = len(found) - 1 - next(at for at, line in enumerate(reversed(found)) if line.startswith("[0]"))
    assert found.index(next(line for line in found if line.startswith("[1]"))) < last_of_a


def test_a_reader_of_the_output_that_has_exited_does_not_stop_a_follower(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    sink = os.fdopen(writing, "w")
    follower = following([(tmp_path / "a", sink)])
    (tmp_path / "a").write_bytes(b"one\n\r 50%")
    follower.catch_up()
    follower.stop()
    with pytest.raises(BrokenPipeError):
        sink.close()
