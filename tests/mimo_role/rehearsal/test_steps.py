"""The steps of a rehearsed rank: where they end the script, and whether all ranks would meet in them."""

from functools import partial

import pytest

from mimo_role.rehearsal.call_log import CallLog
from mimo_role.rehearsal.step_limit import StepLimit
from mimo_role.rehearsal.traffic import Traffic

WORLD = 4


@pytest.fixture
def traffic():
    return Traffic()


def steps(traffic, limit=0):
    """A limit of steps, and the function that begins one."""
    found = StepLimit(limit, WORLD, traffic, CallLog())
    return found, partial(found.around(lambda *_: None), None, 0)


def reduce(traffic, group="default_pg", size=WORLD):
    traffic.add(group, size, "all_reduce", [], ranks=())


def test_a_step_too_many_ends_the_script(traffic):
    limit, begin = steps(traffic, limit=2)
    begin()
    begin()
    with pytest.raises(SystemExit, match=r"^0$"):
        begin()
    assert limit.begun == 2


@pytest.mark.parametrize(
    ("groups", "meets"),
    [
        pytest.param(["default_pg", "default_pg"], True, id="in each step"),
        pytest.param(["default_pg", None], False, id="in one step only"),
        pytest.param([None, None], False, id="in none"),
        pytest.param([], None, id="one step"),
    ],
)
def test_ranks_meet_if_each_step_has_a_collective_of_all(traffic, groups, meets):
    limit, begin = steps(traffic)
    reduce(traffic)  # before the first step
    begin()
    for group in groups:
        if group is not None:
            reduce(traffic, group)
        begin()
    assert limit.meets is meets


def test_messages_of_bridges_and_collectives_of_some_ranks_are_no_meetings(traffic):
    limit, begin = steps(traffic)
    begin()
    reduce(traffic, "language.dp", size=2)
    traffic.bridge = "bridge 0 forward"
    traffic.add("default_pg", WORLD, "send", [], ranks=())
    begin()
    assert limit.meets is False
