from hypothesis import given
from hypothesis import strategies as st

from mimo_role.training.flat_sums import buckets


@given(st.lists(st.integers(0, 20)), st.integers(1, 40))
def test_buckets_are_consecutive_full_and_no_larger_than_the_limit(sizes, limit):
    found = buckets(sizes, limit)

    assert [item for bucket in found for item in bucket] == list(range(len(sizes)))
    totals = [sum(sizes[item] for item in bucket) for bucket in found]
    for bucket, total in zip(found, totals, strict=True):
        assert total <= limit or len([item for item in bucket if sizes[item]]) == 1
    for total, following in zip(totals, found[1:], strict=False):
        assert total + sizes[following[0]] > limit
