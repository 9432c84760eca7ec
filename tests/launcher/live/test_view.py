import math

import pytest

from launcher.errors import LaunchError
from launcher.live.view import LiveView, ModuleView, SlowestRank
from launcher.steps.metrics import ModuleStep, StepMetrics, read_metrics
from launcher.stragglers.straggler import Straggler

VIEW = LiveView(
    run="digits",
    attempt=1,
    time=1000.5,
    began=900.0,
    interval_s=1.0,
    world_size=4,
    recording=4,
    step=40,
    total_steps=400,
    step_s=0.25,
    eta_s=90.0,
    scalars={"loss": 2.5},
    modules={
        "vision": ModuleView(ranks=2),
        "language": ModuleView(ranks=2, slowest=SlowestRank(rank=3, label="language.dp1", node="a", compute_s=0.1)),
    },
    stragglers=(Straggler(rank=3, label="language.dp1", node="a", ratio=1.4, since_step=12, share=0.1),),
)


def test_a_view_is_read_as_it_was_written():
    assert LiveView.from_json(VIEW.to_json()) == VIEW


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"format": 0}', '{"format": 1}', VIEW.to_json()[:-1]])
def test_a_text_that_is_no_view_is_refused(text):
    with pytest.raises(LaunchError):
        LiveView.from_json(text)


def step(number, attempt=0, **more):
    return StepMetrics(step=number, attempt=attempt, time=1.0, seconds=0.5, **more)


def test_the_last_line_of_a_step_counts_and_damaged_ones_are_left_out():
    first, second = step(1, modules={"vision": ModuleStep(compute_s=0.25, tokens=12.0)}), step(2, scalars={"loss": 1.0})
    again = step(2, attempt=1)
    lines = [second.to_json(), first.to_json(), again.to_json(), again.to_json()[:20], "7", ""]
    assert read_metrics(lines) == [first, again]


def test_a_number_that_json_does_not_have_is_not_written():
    with pytest.raises(ValueError, match="JSON"):
        step(1, scalars={"loss": math.nan}).to_json()
