from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from launcher.steps.intervals import overlap, union

TIMES = st.integers(0, 60)
INTERVALS = st.lists(st.tuples(TIMES, TIMES).map(lambda pair: (min(pair), max(pair))), max_size=12)


def moments(intervals):
    return {at for begin, end in intervals for at in range(begin, end)}


@given(INTERVALS)
def test_a_union_has_the_same_moments_in_intervals_that_do_not_touch(intervals):
    found = union(intervals)
    assert moments(found) == moments(intervals)
    assert all(begin < end for begin, end in found)
    assert all(one[1] < other[0] for one, other in pairwise(found))


@given(INTERVALS, TIMES, TIMES)
def test_an_overlap_is_the_number_of_common_moments(intervals, one, other):
    begin, end = min(one, other), max(one, other)
    assert overlap(begin, end, union(intervals)) == len(moments(intervals) & set(range(begin, end)))
