import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.top.shares import PARTS, bar, columns_of
from tests.launcher.live.views import module

shares = st.lists(st.floats(0, 1), min_size=1, max_size=5).filter(lambda values: sum(values) > 1e-6)


@given(shares, st.integers(1, 60))
def test_a_bar_is_filled_in_proportion(values, width):
    columns = columns_of(values, width)
    assert sum(columns) == width
    for column, value in zip(columns, values, strict=True):
        assert abs(column - width * value / sum(values)) < 1


def test_what_is_left_of_a_step_is_other():
    assert [round(part.of(module()), 2) for part in PARTS] == [0.71, 0.05, 0.12, 0.08, 0.04]


def test_parts_that_exceed_the_step_leave_nothing():
    assert PARTS[-1].of(module(compute=1.2)) == 0.0


@pytest.mark.parametrize(("ascii_only", "text"), [(False, "███████▓▒░"), (True, "#######=+-")])
def test_the_parts_differ_without_colors(ascii_only, text):
    assert bar(module(), 10, ascii_only=ascii_only).plain == text


def test_a_script_without_a_schedule_has_no_bar():
    assert bar(module(compute=None), 10, ascii_only=False).plain == ""
