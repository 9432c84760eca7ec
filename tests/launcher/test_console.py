"""Where the output of a run is printed."""

import io

import pytest

from launcher.console import Console
from tests.launcher.terminal.screen import Screen


def test_on_a_terminal_messages_appear_above_bars(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    console = Console.of_process(screen, screen, lambda text: screen.write(f"{text}\n"), fold_s=0.0)
    console.bottom.show(["50%"], 0.0)
    console.say("a message")
    assert screen.shown == ["a message", "50%"]


@pytest.mark.parametrize(
    ("out", "err", "terminal"),
    [
        pytest.param(io.StringIO(), Screen(), "xterm", id="stdout is a pipe: its reader may print on the same terminal"),
        pytest.param(Screen(), io.StringIO(), "xterm", id="stderr is a file"),
        pytest.param(Screen(), Screen(), "dumb", id="a terminal without codes"),
        pytest.param(Screen(), Screen(), "", id="no kind of terminal"),
    ],
)
def test_elsewhere_nothing_is_redrawn(monkeypatch, out, err, terminal):
    monkeypatch.setenv("TERM", terminal)
    messages = []
    console = Console.of_process(out, err, messages.append, fold_s=0.0)
    console.say("a message")
    assert console.bottom is None
    assert messages == ["a message"]
