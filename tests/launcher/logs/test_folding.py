"""Lines that several ranks write at about the same time become one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.logs.folding import LineFolder

RANKS = 4
MOMENT_S = 1.0

# What is written, in order: a rank, a few lines, and how much time has passed since the one before.
WRITES = st.lists(
    st.tuples(
        st.integers(0, RANKS - 1),
        st.lists(st.sampled_from(["", "epoch", "loss 0.1", "loss 0.2", "epoch "]), min_size=1, max_size=4),
        st.sampled_from([0.0, 0.1, 0.4, 1.0, 2.5]),
    ),
    max_size=40,
)


def played(writes, moment_s=MOMENT_S):
    """What is let go, each with the time, if it is asked for after every write."""
    fold, now, gone = LineFolder(RANKS, moment_s), 0.0, []
    for rank, lines, pause in writes:
        now += pause
        gone += [(folded, now) for folded in fold.let_go(now)]
        fold.add(rank, lines, now)
        gone += [(folded, now) for folded in fold.let_go(now)]
    return gone + [(folded, now) for folded in fold.let_go()]


def lines_of(rank, gone):
    return [folded.line for folded, _ in gone for other in folded.ranks if other == rank]


@given(WRITES, st.sampled_from([0.0, 0.3, MOMENT_S]))
def test_nothing_is_lost_and_nothing_invented(writes, moment_s):
    written = Counter((rank, line) for rank, lines, _ in writes for line in lines)
    passed_on = Counter((rank, folded.line) for folded, _ in played(writes, moment_s) for rank in folded.ranks)
    assert passed_on == written


@given(WRITES, st.sampled_from([0.0, 0.3, MOMENT_S]))
def test_the_lines_of_a_rank_keep_their_order(writes, moment_s):
    gone = played(writes, moment_s)
    for rank in range(RANKS):
        assert lines_of(rank, gone) == [line for writer, lines, _ in writes if writer == rank for line in lines]


@given(WRITES)
def test_two_lines_of_one_rank_are_never_folded(writes):
    assert all(len(set(folded.ranks)) == len(folded.ranks) for folded, _ in played(writes))


@given(WRITES)
def test_without_a_moment_nothing_is_folded(writes):
    gone = played(writes, moment_s=0.0)
    assert [(folded.ranks, folded.line) for folded, _ in gone] == [
        ([rank], line) for rank, lines, _ in writes for line in lines
    ]


@given(WRITES)
def test_without_a_moment_nothing_is_held_back(writes):
    fold = LineFolder(RANKS, 0.0)
    for rank, lines, _ in writes:
        fold.add(rank, lines, now=7.0)
        assert [folded.line for folded in fold.let_go(7.0)] == lines


@given(WRITES)
def test_a_line_is_held_back_no_longer_than_the_moment(writes):
    """Asked for at any time, all that are old enough are let go."""
    for count in range(len(writes) + 1):
        fold, now = LineFolder(RANKS, MOMENT_S), 0.0
        for rank, lines, pause in writes[:count]:
            now += pause
            fold.add(rank, lines, now)
        fold.let_go(now)
        assert all(now - folded.since < MOMENT_S for folded in fold.let_go())


@given(WRITES)
def test_a_line_that_is_let_go_is_old_enough_or_complete(writes):
    fold, now = LineFolder(RANKS, MOMENT_S), 0.0
    for rank, lines, pause in writes:
        now += pause
        fold.add(rank, lines, now)
        for folded in fold.let_go(now):
            assert now - folded.since >= MOMENT_S or len(folded.ranks) == RANKS


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
    fold = LineFolder(2, MOMENT_S)
    fold.add(0, [one], 0.0)
    fold.add(1, [other], 0.0)
    assert [(folded.line, folded.ranks) for folded in fold.let_go()] == [(one, [0]), (other, [1])]


def test_a_line_that_all_have_written_goes_at_once():
    fold = LineFolder(3, MOMENT_S)
    fold.add(2, ["start"], 0.0)
    fold.add(0, ["start"], 0.0)
    assert fold.let_go(0.0) == []
    fold.add(1, ["start"], 0.1)
    (folded,) = fold.let_go(0.1)
    assert (folded.line, folded.ranks) == ("start", [2, 0, 1])


def test_a_complete_line_does_not_overtake_an_earlier_one():
    fold = LineFolder(2, MOMENT_S)
    fold.add(0, ["mine", "both"], 0.0)
    fold.add(1, ["both"], 0.5)
    assert fold.let_go(0.5) == []
    assert [folded.line for folded in fold.let_go(1.0)] == ["mine", "both"]


def test_a_rank_that_comes_after_the_moment_has_a_line_of_its_own():
    fold = LineFolder(3, MOMENT_S)
    fold.add(0, ["start"], 0.0)
    fold.add(1, ["start"], 0.9)
    assert [folded.ranks for folded in fold.let_go(1.0)] == [[0, 1]]
    fold.add(2, ["start"], 1.1)
    assert [folded.ranks for folded in fold.let_go(2.1)] == [[2]]


def test_a_line_that_each_rank_repeats_is_folded_as_often():
    fold = LineFolder(2, MOMENT_S)
    fold.add(0, ["tick"] * 3, 0.0)
    fold.add(1, ["tick"] * 2, 0.0)
    assert [folded.ranks for folded in fold.let_go()] == [[0, 1], [0, 1], [0]]


def test_many_equal_lines_of_many_ranks_are_folded_one_to_one():
    """With a cost that grew with the square of their number this would take minutes."""
    count = 100_000
    fold = LineFolder(RANKS, MOMENT_S)
    for rank in range(RANKS):
        fold.add(rank, ["step"] * count, 0.0)
    gone = fold.let_go(0.0)
    assert len(gone) == count
    assert all(folded.ranks == [0, 1, 2, 3] for folded in gone)


def test_many_equal_lines_of_one_rank_are_let_go_one_by_one():
    fold, gone = LineFolder(RANKS, MOMENT_S), 0
    for number in range(100_000):
        fold.add(0, ["step"], number * MOMENT_S)
        gone += len(fold.let_go(number * MOMENT_S))
    assert gone + len(fold.let_go()) == 100_000
