"""A run in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.live.status_line import status_line
from launcher.live.summary import summary
from tests.launcher.live.views import live_view, module, straggler


def test_all_that_is_known_is_in_the_line():
    assert status_line(live_view(attempt=2, stragglers=(straggler(), straggler(4)))) == (
        "step 412 of 2,000 | attempt 2 | 3.1 steps/s | 12.4k tokens/s | loss 2.314 | compute 71 % | collectives 5 %"
        " | bridge 12 % | bubble 8 % | 2 stragglers | ETA 8 min"
    )


def test_what_is_not_known_is_left_out():
    bare = live_view(total_steps=None, step_s=None, eta_s=None, scalars={}, modules={})
    assert status_line(bare) == "step 412"


def test_before_the_first_step_the_ranks_that_have_begun_are_counted():
    view = live_view(step=None, recording=4, step_s=None, eta_s=None, scalars={}, modules={})
    assert status_line(view) == "no step yet (4 of 6 ranks recorded something)"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        pytest.param(80, "step 412 of 2,000 | 3.1 steps/s | 12.4k tokens/s | loss 2.314 | ETA 8 min", id="80"),
        pytest.param(60, "step 412 of 2,000 | 3.1 steps/s | loss 2.314 | ETA 8 min", id="60"),
        pytest.param(35, "step 412 of 2,000 | loss 2.314", id="35"),
        pytest.param(10, "step 412 o", id="10"),
    ],
)
def test_in_a_narrow_terminal_the_least_important_parts_are_left_out(columns, line):
    assert status_line(live_view(), columns) == line


@given(st.integers(1, 200), st.booleans(), st.integers(0, 3))
def test_a_line_is_never_wider_than_the_terminal(columns, has_modules, attempt):
    view = live_view(attempt=attempt) if has_modules else live_view(attempt=attempt, modules={})
    line = status_line(view, columns)
    assert len(line) <= columns
    assert line.startswith("step 412 of 2,000"[:columns])


def test_tokens_are_those_of_the_language_model():
    view = live_view(modules={"vision": module("vision", tokens_per_s=1000.0), "language": module(tokens_per_s=7.0)})
    assert "| 7 tokens/s |" in status_line(view)


def test_shares_are_means_over_the_ranks_that_have_a_schedule():
    modules = {
        "vision": module("vision", 3, compute=0.2, bridge_wait=0.8, collectives=0, bubble=0),
        "language": module(ranks=1, compute=1.0, bridge_wait=0.0, collectives=0, bubble=0),
        "audio": module("audio", 100, compute=None, bridge_wait=None, collectives=None, bubble=None),
    }
    assert "| compute 40 % | bridge 60 % |" in status_line(live_view(modules=modules))


def test_a_name_cannot_act_on_the_terminal():
    view = live_view(scalars={"\x1b[2Jloss\n": 1.0})
    assert "\\x1b[2Jloss\\n 1" in status_line(view)


def test_the_summary_of_a_run_has_its_stragglers():
    first, second = summary(live_view(stragglers=(straggler(),)))
    assert first.startswith("step 412 of 2,000 | ")
    assert second.startswith("straggler: rank 3 (language.dp3, alpha) computes 1.40x its peers' median since step 312")


def test_before_the_first_step_there_is_no_summary():
    assert summary(live_view(step=None)) == []
