"""Lines that are redrawn at the bottom of a terminal."""

import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.terminal.bottom_lines import BottomLines
from tests.launcher.terminal.screen import Screen


@pytest.fixture
def screen():
    return Screen()


@pytest.fixture
def bottom(screen):
    return BottomLines(screen)


def test_lines_are_redrawn_in_place(screen, bottom):
    screen.write("before\n")
    bottom.show(["outer 0", "inner 0"], 0.0)
    bottom.show(["outer 1", "inner 50"], 1.0)
    assert screen.shown == ["before", "outer 1", "inner 50"]
    bottom.show(["outer 2"], 2.0)
    assert screen.shown == ["before", "outer 2"]
    bottom.show([], 2.0)
    assert screen.shown == ["before"]


def test_lines_are_drawn_twice_a_second_at_most_and_removed_at_once(screen, bottom):
    for tick in range(10):
        bottom.show([f"state {tick}"], tick / 10)
        assert screen.shown == [f"state {tick // 5 * 5}"]
    bottom.show([], 0.91)
    assert screen.shown == []


def test_what_is_printed_appears_above(screen, bottom):
    bottom.show(["state 0"], 0.0)
    with bottom.lifted():
        screen.write("a line\n")
        bottom.show(["state 1"], 0.1)
    assert screen.shown == ["a line", "state 1"]
    bottom.above(lambda text: screen.write(f"{text}\n"))("a message")
    assert screen.shown == ["a line", "a message", "state 1"]


def test_what_other_programs_print_is_not_erased(screen, bottom):
    bottom.show(["state 0"], 0.0)
    screen.write("a message of another program\n")
    bottom.show(["state 1"], 1.0)
    assert screen.shown == ["a message of another program", "state 1"]


def test_a_long_line_is_cut_by_the_terminal(screen, bottom):
    bottom.show(["x" * 100, "y"], 0.0)
    bottom.show(["x" * 100, "z"], 1.0)
    assert screen.shown == ["x" * 40, "z"]
    assert screen.wraps


def test_of_many_lines_the_first_are_shown(screen, bottom):
    bottom.show([f"rank {rank}" for rank in range(20)], 0.0)
    assert screen.shown == [*(f"rank {rank}" for rank in range(7)), "... and 13 more"]


def test_nothing_is_written_before_there_is_a_line(screen, bottom):
    bottom.show([], 0.0)
    with bottom.lifted():
        pass
    assert screen.getvalue() == ""


@given(st.lists(st.one_of(st.text("ab", min_size=1), st.lists(st.text("xy", min_size=1, max_size=50), max_size=12))))
def test_no_printed_line_is_lost_whatever_is_redrawn(steps):
    screen, printed, now = Screen(), [], 0.0
    bottom = BottomLines(screen)
    for step in steps:
        now += 0.3
        if isinstance(step, list):
            bottom.show(step, now)
        else:
            printed.append(step[:40])
            with bottom.lifted():
                screen.write(f"{printed[-1]}\n")
    bottom.show([], now)
    assert screen.shown == printed


def test_a_terminal_that_is_gone_does_not_end_the_job():
    closed = Screen()
    closed.close()
    BottomLines(closed).show(["state"], 0.0)


IN_BACKGROUND = """
import os, sys
from launcher.terminal.bottom_lines import BottomLines

def show(text):
    BottomLines(sys.stdout).show([text], 0.0)
    os._exit(0)

show_first = os.fork()
if not show_first:
    show("in the foreground")
os.waitpid(show_first, 0)
child = os.fork()
if not child:
    os.setpgid(0, 0)
    show("in the background")
os.waitpid(child, 0)
"""


def test_nothing_is_drawn_while_the_shell_has_the_terminal():
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", IN_BACKGROUND])
    shown = b""
    while b"background" not in shown:
        try:
            data = os.read(terminal, 4096)
        except OSError:  # all of its processes have ended
            break
        shown += data
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"in the foreground" in shown
    assert b"background" not in shown


def test_a_terminal_of_one_row_shows_one_line():
    code = (
        "import fcntl, struct, sys, termios\n"
        "from launcher.terminal.bottom_lines import BottomLines\n"
        "fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack('4H', 2, 80, 0, 0))\n"
        "BottomLines(sys.stdout).show(['one', 'two', 'three'], 0.0)\n"
    )
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stdout=theirs, check=True, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert b"... and 3 more" in shown
    assert b"one" not in shown
