"""The status line of `mimo-launch run`."""

import io
import re

import pytest

from launcher.console import Console
from launcher.live.status_display import status_display
from tests.launcher.jobs import without_slow_ranks
from tests.launcher.live.views import live_view
from tests.launcher.terminal.screen import Screen
from tests.launcher.terminal_user import CTRL_C, at_terminal

STEPS = """
import sys, time, mimo_role

ctx = mimo_role.current()
for step in range(1, 100_000):
    ctx.step(step, of=99_999)
    ctx.log(loss=2.5)
    time.sleep(0.02)
    if step % 50 == 0:
        print(f"line at step {step}", flush=True)
"""
STATUS = re.compile(r"step [\d,]+ of 99,999 \| [\d.]+ steps/s \| loss 2\.5 \| ETA \d+ (?:min|h)")
REDRAWN = re.compile(r"\x1b\[J\x1b\[\?7l([^\x1b\n]*)\x1b\[0m\x1b\[\?7h\r")
"""What is drawn in the last line, and drawn over."""


def console(screen, **more):
    return Console.of_process(screen, screen, lambda text: screen.write(f"{text}\n"), fold_s=0.0, **more)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    return Screen(80)


def test_the_line_appears_with_the_first_step_below_messages_and_bars_and_is_removed(screen):
    shared = console(screen)
    with status_display(shared) as show:
        show(live_view(step=None))
        assert screen.shown == []
        show(live_view())
        shared.say("a message")
        shared.bottom.show(["50%"], float("inf"))
        message, bar, status = screen.shown
        assert (message, bar) == ("a message", "50%")
        assert status == "step 412 of 2,000 | 3.1 steps/s | 12.4k tokens/s | loss 2.314 | ETA 8 min"
        shared.bottom.show([], float("inf"))
        assert screen.shown == ["a message", status]
    assert screen.shown == ["a message"]


def test_the_line_is_removed_after_an_error(screen):
    def fail():
        with status_display(console(screen)) as show:
            show(live_view())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert screen.shown == []


def test_there_is_none_where_nothing_is_redrawn_or_the_user_wants_none(screen):
    with status_display(console(screen, has_status=False)) as show:
        assert show is None
    with status_display(console(io.StringIO())) as show:
        assert show is None


@pytest.mark.ranks
@pytest.mark.timeout(180)
def test_at_a_terminal_a_run_has_a_status_line_below_its_output(job):
    with at_terminal(job, STEPS, term="xterm") as user:
        user.wait_for("line at step 50\n", 3)
        user.wait_for(" of 99,999 | ")
        user.wait_for("line at step 100\n")
        user.type(CTRL_C)
        assert user.finish() == 130, user.seen
    drawn = REDRAWN.findall(user.seen)
    assert drawn
    assert all(STATUS.fullmatch(line) for line in drawn), drawn
    # What remains on the screen are whole lines.
    left = REDRAWN.sub("", user.seen).replace("\x1b[J", "").replace("^C", "")
    assert "\x1b" not in left
    lines = left.splitlines()
    assert all(re.fullmatch(r"mimo-launch: .*|\[\S+ r\d\] line at step \d+", line) for line in lines), lines
    assert lines[-1] == "mimo-launch: interrupted"


@pytest.mark.ranks
@pytest.mark.timeout(180)
def test_the_status_line_can_be_turned_off(job):
    with at_terminal(job, STEPS.replace("100_000", "102"), "--progress", "off", term="xterm") as user:
        assert user.finish() == 0, user.seen
    assert user.seen.count("line at step 100\n") == 3
    assert "steps/s" not in user.seen


@pytest.mark.ranks
@pytest.mark.timeout(180)
def test_on_a_pipe_there_is_no_status_line(job):
    done = job.run(STEPS.replace("100_000", "102"))
    assert (done.returncode, without_slow_ranks(done.stderr)) == (0, "")
    assert len(done.stdout.splitlines()) == 6
