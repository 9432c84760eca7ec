import json

from launcher.top.as_lines import JsonLines, as_line, moments
from launcher.top.moment import Moment, State
from tests.launcher.live.views import live_view


class Script:
    """A source that returns these moments one after the other."""

    def __init__(self, *found):
        self._left = [*found]

    def read(self):
        return self._left.pop(0)


STARTING = Moment(state=State.WAITING, note="starting")
RUNNING = Moment(state=State.RUNNING, note="running", view=live_view())
STALE = Moment(state=State.STALE, note="no news for 5 s", view=live_view())
DONE = Moment(state=State.OVER, note="over, done", view=live_view(time=1721.0))


def test_each_interval_has_a_moment_until_the_run_is_over():
    slept = []
    assert [*moments(Script(STARTING, RUNNING, STALE, DONE, RUNNING), 2.5, slept.append)] == [STARTING, RUNNING, STALE, DONE]
    assert slept == [2.5, 2.5, 2.5]


def test_a_line_has_the_state_where_the_run_is_not_simply_running():
    assert as_line(STARTING) == "starting"
    assert as_line(RUNNING).startswith("digits: step 412 of 2,000 | ")
    assert as_line(RUNNING).endswith(" | ETA 8 min")
    assert as_line(STALE).startswith("digits: no news for 5 s | step 412 of 2,000 | ")
    assert as_line(DONE).startswith("digits: over, done | step 412 of 2,000 | ")
    assert "ETA" not in as_line(DONE)


def test_json_has_each_view_once_and_whole():
    views = JsonLines()
    lines = [views.of(moment) for moment in (STARTING, RUNNING, STALE, DONE)]
    assert [line is None for line in lines] == [True, False, True, False]
    assert json.loads(lines[3]) == json.loads(live_view(time=1721.0).to_json())
