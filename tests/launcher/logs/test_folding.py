"""Equal lines of several ranks at about the same time are folded into one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs.folding import LineFolder

RANKS = 4
HOLD_S = 1.0

# What is written, in order: a rank, a few lines, and how much time has passed since the one before.
WRITES = st.lists(
    st.tuples(
        st.integers(0, RANKS - 1),
        st.lists(st.sampled_from(["", "epoch", "loss 0.1", "loss 0.2", "epoch "]), min_size=1, max_size=4),
        st.sampled_from([0.0, 0.1, 0.4, 1.0, 2.5]),
    ),
    max_size=40,
)


def fold_all(writes, hold_s=HOLD_S):
    """The released lines with the time, if they are polled after every write."""
    fold, now, released = LineFolder(RANKS, hold_s), 0.0, []
    for rank, lines, pause in writes:
        now += pause
        released += [(folded, now) for folded in fold.release(now)]
        fold.add(rank, lines, now)
        released += [(folded, now) for folded in fold.release(now)]
    return released + [(folded, now) for folded in fold.release()]


def lines_of(rank, released):
    return [folded.line for folded, _ in released for other in folded.ranks if other == rank]


@given(WRITES, st.sampled_from([0.0, 0.3, HOLD_S]))
def test_nothing_is_lost_and_nothing_invented(writes, hold_s):
    written = Counter((rank, line) for rank, lines, _ in writes for line in lines)
    passed_on = Counter((rank, folded.line) for folded, _ in fold_all(writes, hold_s) for rank in folded.ranks)
    assert passed_on == written


@given(WRITES, st.sampled_from([0.0, 0.3, HOLD_S]))
def test_the_lines_of_a_rank_keep_their_order(writes, hold_s):
    released = fold_all(writes, hold_s)
    for rank in range(RANKS):
        assert lines_of(rank, released) == [line for writer, lines, _ in writes if writer == rank for line in lines]


@given(WRITES)
def test_two_lines_of_one_rank_are_never_folded(writes):
    assert all(len(set(folded.ranks)) == len(folded.ranks) for folded, _ in fold_all(writes))


@given(WRITES)
def test_with_a_hold_of_0_no_line_is_folded(writes):
    released = fold_all(writes, hold_s=0.0)
    assert [(folded.ranks, folded.line) for folded, _ in released] == [
        ([rank], line) for rank, lines, _ in writes for line in lines
    ]


@given(WRITES)
def test_with_a_hold_of_0_no_line_is_held(writes):
    fold = LineFolder(RANKS, 0.0)
    for rank, lines, _ in writes:
        fold.add(rank, lines, now=7.0)
        assert [folded.line for folded in fold.release(7.0)] == lines


@given(WRITES)
def test_a_line_is_held_no_longer_than_the_hold(writes):
    """At any time, all lines that were held long enough are released."""
    for count in range(len(writes) + 1):
        fold, now = LineFolder(RANKS, HOLD_S), 0.0
        for rank, lines, pause in writes[:count]:
            now += pause
            fold.add(rank, lines, now)
        fold.release(now)
        assert all(now - folded.since < HOLD_S for folded in fold.release())


@given(WRITES)
def test_a_released_line_was_held_long_enough_or_is_complete(writes):
    fold, now = LineFolder(RANKS, HOLD_S), 0.0
    for rank, lines, pause in writes:
        now += pause
        fold.add(rank, lines, now)
        for folded in fold.release(now):
            assert now - folded.since >= HOLD_S or len(folded.ranks) == RANKS


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("loss 0.1", "loss 0.2", id="numbers"),
        pytest.param("done", "done ", id="a space at the end"),
        pytest.param("rank 0", "rank 1", id="ranks"),
        pytest.param("", " ", id="no text"),
        pytest.param("é", "e\u0301", id="letters that look alike"),
    ],
)
def test_lines_that_differ_are_not_folded(one, other):
    fold = LineFolder(2, HOLD_S)
    fold.add(0, [one], 0.0)
    fold.add(1, [other], 0.0)
    assert [(folded.line, folded.ranks) for folded in fold.release()] == [(one, [0]), (other, [1])]


def test_a_line_that_all_have_written_is_released_at_once():
    fold = LineFolder(3, HOLD_S)
    fold.add(2, ["start"], 0.0)
    fold.add(0, ["start"], 0.0)
    assert fold.release(0.0) == []
    fold.add(1, ["start"], 0.1)
    (folded,) = fold.release(0.1)
    assert (folded.line, folded.ranks) == ("start", [2, 0, 1])


def test_a_complete_line_does_not_overtake_an_earlier_one():
    fold = LineFolder(2, HOLD_S)
    fold.add(0, ["mine", "both"], 0.0)
    fold.add(1, ["both"], 0.5)
    assert fold.release(0.5) == []
    assert [folded.line for folded in fold.release(1.0)] == ["mine", "both"]


def test_a_rank_that_writes_after_the_hold_has_its_own_line():
    fold = LineFolder(3, HOLD_S)
    fold.add(0, ["start"], 0.0)
    fold.add(1, ["start"], 0.9)
    assert [folded.ranks for folded in fold.release(1.0)] == [[0, 1]]
    fold.add(2, ["start"], 1.1)
    assert [folded.ranks for folded in fold.release(2.1)] == [[2]]


def test_repeated_lines_are_folded_one_to_one():
    fold = LineFolder(2, HOLD_S)
    fold.add(0, ["tick"] * 3, 0.0)
    fold.add(1, ["tick"] * 2, 0.0)
    assert [folded.ranks for folded in fold.release()] == [[0, 1], [0, 1], [0]]


def test_many_equal_lines_of_many_ranks_are_folded_one_to_one():
    """With quadratic cost this would take minutes."""
    count = 100_000
    fold = LineFolder(RANKS, HOLD_S)
    for rank in range(RANKS):
        fold.add(rank, ["step"] * count, 0.0)
    released = fold.release(0.0)
    assert len(released) == count
    assert all(folded.ranks == [0, 1, 2, 3] for folded in released)


def test_many_equal_lines_of_one_rank_are_released_one_by_one():
    fold, released = LineFolder(RANKS, HOLD_S), 0
    for number in range(100_000):
        fold.add(0, ["step"], number * HOLD_S)
        released += len(fold.release(number * HOLD_S))
    assert released + len(fold.release()) == 100_000
