"""What the kinds of a rehearsal have called over the groups that they share."""

from dataclasses import replace

from launcher.rehearse.call_comparison import NO_GROUP, NOTHING, differences
from launcher.rehearse.calls import Call, Calls, Ended, Group, KindCalls
from launcher.rehearse.difference_text import text_of
from launcher.rehearse.kinds import Kind

FIRST = Kind(stage="language.pp0", places=(("first lane",),), ranks=(0,), representative=0)
MIDDLE = Kind(stage="language.pp0", places=(("middle lanes",),), ranks=tuple(range(1, 999)), representative=1)
LAST = Kind(stage="language.pp0", places=(("last lane",),), ranks=(999,), representative=999)


def calls_of(*texts, count=None, checksum=0):
    """Calls by their texts; `barrier@2` is in the second step."""
    first = []
    for text in texts:
        name, _, step = text.partition("@")
        first.append(Call(name, "", int(step or 0)))
    return Calls(first, len(first) if count is None else count, checksum)


def group(calls, *, name="default_pg", ranks=((0, 1000, 1),), number=0, messages=None):
    return Group(name, ranks, number, calls, messages or {})


def did(kind, *groups, ended=Ended.BY_ITSELF, bridges=None):
    return KindCalls(kind=kind, groups=groups, bridges=bridges or {}, ended=ended)


def over_the_world(*texts, ended=Ended.BY_ITSELF):
    """What each of the three kinds calls, given as words, and the differences."""
    kinds = zip((FIRST, MIDDLE, LAST), texts, strict=True)
    return differences([did(kind, group(calls_of(*words.split())), ended=ended) for kind, words in kinds])


def found(difference):
    return {what: kinds for (what, _), kinds in difference.did.items()}


def test_equal_calls_have_no_difference():
    assert over_the_world("a b", "a b", "a b") == []


def test_the_first_different_call_is_found_with_the_fewest_ranks_first():
    (difference,) = over_the_world("a b c", "a d", "a d")
    assert difference.number == 2
    assert list(found(difference)) == ["b", "d"]
    assert found(difference) == {"b": [FIRST], "d": [MIDDLE, LAST]}


def test_a_call_that_some_leave_out_is_found():
    (difference,) = over_the_world("a", "a a", "a")
    assert found(difference) == {NOTHING: [FIRST, LAST], "a": [MIDDLE]}


def test_a_call_that_some_leave_out_in_each_step_is_found_where_scripts_were_ended_after_two():
    (difference,) = over_the_world("a@1 a@1 a@2 a@2", "a@1 a@2", "a@1 a@2", ended=Ended.BY_STEPS)
    assert difference.number == 3
    assert found(difference)[NOTHING] == [MIDDLE, LAST]


def test_a_call_before_the_first_step_that_some_leave_out_is_found():
    (difference,) = over_the_world("a@0", "", "", ended=Ended.BY_STEPS)
    assert found(difference) == {"a": [FIRST], NOTHING: [MIDDLE, LAST]}


def test_ranks_that_were_ended_on_either_side_of_a_call_do_not_differ():
    assert over_the_world("a@0 b@1 a@1 b@2 a@2", "a@1 b@1 a@2 b@2", "a@1 b@1 a@2 b@2", ended=Ended.BY_STEPS) == []


def test_what_a_failed_rank_has_not_called_any_more_is_no_difference():
    failed = did(FIRST, group(calls_of("a")), ended=Ended.BY_A_FAILURE)
    assert differences([failed, did(MIDDLE, group(calls_of("a", "b")))]) == []
    (difference,) = differences([failed, did(MIDDLE, group(calls_of("c")))])
    assert difference.number == 1


def test_groups_in_which_no_other_kind_was_rehearsed_are_compared_by_description():
    pair = {"name": "language.tp", "ranks": ((0, 2, 1),)}
    other = {"name": "language.tp", "ranks": ((998, 1000, 1),)}
    kinds = [did(FIRST, group(calls_of("a"), **pair)), did(MIDDLE, group(calls_of("a"), **pair))]
    last = did(LAST, group(calls_of("b"), **other))
    assert differences([*kinds, did(LAST, group(calls_of("a"), **other))]) == []
    (difference,) = differences([*kinds, last])
    assert found(difference)["b"] == [LAST]


def test_groups_without_a_description_are_compared_on_their_own_members_only():
    first, other = {"name": "undefined", "ranks": ((0, 2, 1),)}, {"name": "undefined", "ranks": ((998, 1000, 1),)}
    kinds = [did(FIRST, group(calls_of("a"), **first)), did(MIDDLE, group(calls_of("a"), **first))]
    assert differences([*kinds, did(LAST, group(calls_of("b"), **other))]) == []


def test_a_group_that_a_member_has_not_created_is_found_once_it_is_used():
    pair = {"name": "undefined", "ranks": ((0, 2, 1),)}
    assert differences([did(FIRST, group(calls_of(), **pair)), did(MIDDLE)]) == []
    (difference,) = differences([did(FIRST, group(calls_of("a"), **pair)), did(MIDDLE)])
    assert found(difference) == {"a": [FIRST], NO_GROUP: [MIDDLE]}


def test_groups_of_the_same_ranks_are_told_apart_by_the_order_of_their_creation():
    one, two = group(calls_of("a")), group(calls_of("b"), number=1)
    assert differences([did(FIRST, one, two), did(MIDDLE, one, two)]) == []
    swapped = group(calls_of("b")), group(calls_of("a"), number=1)
    assert len(differences([did(FIRST, one, two), did(MIDDLE, *swapped)])) == 2


def test_calls_behind_those_that_were_kept_are_compared_by_number_and_checksum():
    many = [did(kind, group(calls_of("a", count=9000, checksum=7))) for kind in (FIRST, MIDDLE)]
    assert differences(many) == []
    (difference,) = differences([*many, did(LAST, group(calls_of("a", count=9001, checksum=8)))])
    assert difference.number == 0
    assert found(difference) == {"9,001 calls in all": [LAST], "9,000 calls in all": [FIRST, MIDDLE]}


def messages(**sequences):
    return {(0, 1, int(name[1:])): calls_of(*words.split()) for name, words in sequences.items()}


def test_messages_are_compared_between_sender_and_receiver():
    sender = did(FIRST, group(calls_of(), messages=messages(t0="2_float32 2_float32")))
    assert differences([sender, did(MIDDLE, group(calls_of(), messages=messages(t0="2_float32 2_float32")))]) == []
    (other,) = differences([sender, did(MIDDLE, group(calls_of(), messages=messages(t0="2_float32 4_float32")))])
    assert found(other) == {"send(2_float32)": [FIRST], "recv(4_float32)": [MIDDLE]}
    assert other.unit == "message"
    (missing,) = differences([sender, did(MIDDLE, group(calls_of()))])
    assert found(missing) == {"send(2_float32)": [FIRST], NOTHING: [MIDDLE]}
    (unsent,) = differences([did(FIRST, group(calls_of())), did(MIDDLE, group(calls_of(), messages=messages(t3="2_float32")))])
    assert found(unsent) == {NOTHING: [FIRST], "recv(2_float32)": [MIDDLE]}


def test_messages_to_a_rank_that_receives_from_any_other_are_not_compared():
    sender = did(FIRST, group(calls_of(), messages=messages(t0="2_float32")))
    receiver = replace(group(calls_of()), receives_from_any=True)
    assert differences([sender, did(MIDDLE, receiver)]) == []


def test_messages_of_which_none_was_kept_are_compared_by_their_number():
    ends = [
        did(kind, group(calls_of(), messages={(0, 1, 0): calls_of(count=count)})) for kind, count in ((FIRST, 5), (MIDDLE, 6))
    ]
    assert [difference.number for difference in differences(ends)] == [0]


def test_a_message_that_may_be_received_in_the_next_step_is_no_difference():
    def ends(received):
        sender = did(FIRST, group(calls_of(), messages=messages(t0="m@1 m@2")), ended=Ended.BY_STEPS)
        return [sender, did(MIDDLE, group(calls_of(), messages=messages(t0=received)), ended=Ended.BY_STEPS)]

    assert differences(ends("m@2")) == []
    assert len(differences(ends(""))) == 1
    assert len(differences(ends("other@2"))) == 1


def test_batches_over_a_bridge_are_counted_on_both_sides():
    one, two = {"the bridge a -> b": calls_of("batch@1")}, {"the bridge a -> b": calls_of("batch@1", "batch@1")}
    assert differences([did(FIRST, bridges=one), did(MIDDLE, bridges=one)]) == []
    (difference,) = differences([did(FIRST, bridges=one), did(MIDDLE, bridges=two)])
    assert (difference.unit, difference.number) == ("batch", 2)


def test_alike_differences_over_several_groups_are_one():
    kinds = [
        did(kind, *(group(calls_of(text), name="language.dp", ranks=((0, 1000, 1),), number=number) for number in range(3)))
        for kind, text in ((FIRST, "a"), (MIDDLE, "b"))
    ]
    (difference,) = differences(kinds)
    assert difference.size == 1000


def test_the_text_names_both_sides_and_their_lines(tmp_path):
    script = tmp_path / "train.py"
    script.write_text("pass\nreduce_loss()\n", encoding="utf-8")
    first = Calls([Call("barrier()", f"{script}:2 in main", 1)], 1, 0)
    (difference,) = differences([did(FIRST, group(first)), did(MIDDLE, group(calls_of())), did(LAST, group(calls_of()))])
    lines = text_of(difference, [FIRST, MIDDLE, LAST]).splitlines()
    assert lines[0] == (
        "language.pp0, first lane (rank 0): barrier() as call 1 over world (1,000 ranks), "
        "nothing on 2 of 3 kinds of language.pp0"
    )
    assert f"    {script}:2 in main" in lines
    assert "      reduce_loss()" in lines
    assert "  2 of 3 kinds of language.pp0 (999 ranks, 1-999): nothing more" in lines
