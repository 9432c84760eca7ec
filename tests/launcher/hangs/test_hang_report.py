"""Which ranks wait for which, and which of them hold up the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.failures.crash import Frame
from launcher.hangs.probe import RankSnapshot
from launcher.hangs.report import HangReport
from mimo_role import Topology
from mimo_role.monitoring.flight_recorder import GroupTrace, MessageTrace, from_dump
from tests.mimo_role.monitoring.nccl_recorder import NcclRecorder

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}})
"""Ranks 0-1 are vision's, 2-3 language's."""

USERS = Frame("/home/me/train.py", 7, "step", "", is_users=True)
TORCHS = Frame(
    "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "", is_users=False
)
LOADERS = Frame("/env/lib/python3.11/site-packages/torch/utils/data/dataloader.py", 700, "__next__", "", is_users=False)
BRIDGES = Frame("/env/lib/python3.11/site-packages/mimo_role/bridge/transfer.py", 9, "wait", "", is_users=False)
QUEUES = Frame("/usr/lib/python3.11/queue.py", 180, "get", "", is_users=False)


def world(entered, *waiting):
    return GroupTrace(name="0", description="default_pg", entered=entered, waiting=dict.fromkeys(waiting, "all_reduce"))


def group(name, ranks, entered, *waiting, operation="all_gather"):
    return GroupTrace(
        name=f"g_{name}", description=name, ranks=ranks, entered=entered, waiting=dict.fromkeys(waiting, operation)
    )


def snapshot(rank, *traces, state="S", frames=(USERS,), step=None):
    return RankSnapshot(rank=rank, pid=1000 + rank, host="hosta", state=state, step=step, frames=tuple(frames), traces=traces)


def report(*snapshots):
    return HangReport.of(TOPOLOGY, 60.0, snapshots)


def lines(*snapshots):
    return [line.strip() for line in report(*snapshots).text(Path("/run/logs/*.txt")).splitlines()]


TP, DP = (2, 3), (0, 1)
EACH_OTHER = "they wait for each other: some ranks call collectives in a different order"


@pytest.mark.parametrize(
    ("snapshots", "culprits"),
    [
        pytest.param(
            [snapshot(0, world(5, 5)), snapshot(1, world(5, 5)), snapshot(2, world(4)), snapshot(3, world(5, 5))],
            [2],
            id="one rank is late",
        ),
        pytest.param(
            [snapshot(0, world(5, 5)), snapshot(1, world(4)), snapshot(2, world(3)), snapshot(3, world(5, 5))],
            [1, 2],
            id="two ranks are late",
        ),
        pytest.param(
            [snapshot(0, world(1, 1)), *(snapshot(rank) for rank in (1, 2, 3))], [1, 2, 3], id="the first collective of all"
        ),
        pytest.param(
            [
                snapshot(0, world(5, 5)),
                snapshot(1, world(5, 5)),
                snapshot(2, world(4), group("language.tp", TP, 9, 9)),
                snapshot(3, world(4), group("language.tp", TP, 8)),
            ],
            [3],
            id="a chain over two groups",
        ),
        pytest.param(
            [
                snapshot(0, world(4), group("vision.dp", DP, 3)),
                snapshot(1, world(5, 5), group("vision.dp", DP, 3)),
                snapshot(2, world(4), group("mine", (0, 2), 1, 1)),
                snapshot(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [0],
            id="a chain over three groups",
        ),
        pytest.param(
            [
                snapshot(0, world(5, 5)),
                snapshot(1, world(5, 5)),
                snapshot(2, world(5, 5), group("language.tp", TP, 8)),
                snapshot(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [],
            id="a cycle",
        ),
        pytest.param(
            [snapshot(0, world(4)), snapshot(1, world(4)), snapshot(2, world(4)), snapshot(3, world(4))],
            [],
            id="all are in Python",
        ),
        pytest.param([snapshot(rank, world(5, 5)) for rank in range(4)], [], id="all are in one collective"),
        pytest.param(
            [snapshot(0, world(5, 5)), snapshot(1, world(4), state="T"), snapshot(2, world(4)), snapshot(3, world(5, 5))],
            [1],
            id="a stopped rank",
        ),
        pytest.param(
            [snapshot(0, world(4)), snapshot(1, world(4), state="t"), snapshot(2, world(4)), snapshot(3, world(4))],
            [1],
            id="a rank in a debugger",
        ),
        pytest.param(
            [
                snapshot(0, world(5, 5)),
                replace(snapshot(1), traces=None, frames=()),
                snapshot(2, world(5, 5)),
                snapshot(3, world(5, 5)),
            ],
            [1],
            id="a rank that does not respond",
        ),
        pytest.param(
            [snapshot(0, world(5, 5)), snapshot(2, world(5, 5)), snapshot(3, world(5, 5))], [1], id="a rank that has ended"
        ),
        pytest.param(
            [snapshot(0, group("mine", None, 3, 3)), snapshot(1, group("mine", None, 2)), snapshot(2, world(0))],
            [1],
            id="a group whose members no rank knows",
        ),
        pytest.param(
            [snapshot(0, group("mine", None, 3, 3)), snapshot(1, group("mine", (*DP, 2), 3, 3)), snapshot(2)],
            [2],
            id="a group whose members one rank knows",
        ),
        pytest.param(
            [snapshot(0, group("mine", (*DP, 2), 3, 3)), snapshot(1, group("mine", None, 3, 3)), snapshot(2)],
            [2],
            id="the same the other way round",
        ),
        pytest.param(
            [snapshot(0, world(6, 5, 6)), snapshot(1, world(5, 5)), snapshot(2, world(4)), snapshot(3, world(6, 5, 6))],
            [2],
            id="several in flight",
        ),
        pytest.param(
            [snapshot(0, world(5, 5)), snapshot(1, world(9)), snapshot(2, world(4)), snapshot(3, world(9))],
            [2],
            id="some have left it already",
        ),
        pytest.param(
            [
                snapshot(0, world(5, 5)),
                snapshot(1, world(5, 5)),
                snapshot(2, world(4), group("language.tp", TP, 9, 9)),
                snapshot(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [2, 3],
            id="two are in a collective that all have entered",
        ),
    ],
)
def test_the_culprits_are_those_that_others_wait_for_and_that_do_not_wait(snapshots, culprits):
    assert report(*snapshots).culprits == culprits
    assert report(*reversed(snapshots)).culprits == culprits


RANKS = range(4)
STATES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=4, max_size=4)


@given(STATES)
def test_in_one_group_the_culprits_are_those_that_have_entered_fewer_collectives(states):
    """Of each rank: how many collectives it has entered, and whether it waits in the last one."""
    snapshots = [
        snapshot(rank, *([world(entered, *([entered] if waits else []))] if entered else []))
        for rank, (entered, waits) in enumerate(states)
    ]
    furthest = max((entered for entered, waits in states if waits), default=0)
    slowest = min(entered for entered, _ in states)
    behind = {rank for rank in RANKS if states[rank][0] < furthest}
    waiting = {rank for rank, (entered, waits) in enumerate(states) if waits and entered > slowest}
    assert set(report(*snapshots).culprits) == behind - waiting


@given(STATES)
def test_any_report_can_be_printed_and_written(states):
    found = report(
        *(snapshot(rank, world(entered, *([entered] if waits else []))) for rank, (entered, waits) in enumerate(states))
    )
    assert found.text(Path("/run"))
    assert json.loads(json.dumps(found.as_dict()))["headline"] == found.headline


def test_the_headline_has_step_time_and_culprit():
    snapshots = [
        snapshot(0, world(5, 5), step=12),
        snapshot(1, world(5, 5), step=11),
        snapshot(2),
        snapshot(3, world(5, 5), step=12),
    ]
    assert report(*snapshots).headline == "no progress in step 12 for 60 s: rank 2 (language.tp0) held up the others"
    assert report(snapshot(0), snapshot(1)).headline == "no progress for 60 s"


def test_a_collective_is_described_by_group_number_and_ranks():
    text_lines = lines(
        snapshot(0), snapshot(1), snapshot(2, group("language.tp", TP, 9, 9)), snapshot(3, group("language.tp", TP, 8))
    )
    assert (
        "all_gather number 9 of language.tp (ranks 2-3): rank 2 (language.tp0) inside; not entered by rank 3 (language.tp1)"
        in text_lines
    )


def test_the_default_group_is_called_the_world():
    text_lines = lines(snapshot(0, world(5, 5)), snapshot(1, world(4)), snapshot(2, world(4)), snapshot(3, world(4)))
    assert (
        "all_reduce number 5 of the world (ranks 0-3): rank 0 (vision.dp0) inside; "
        "not entered by rank 1 (vision.dp1), rank 2 (language.tp0), rank 3 (language.tp1)" in text_lines
    )


def test_a_group_without_a_description_has_torchs_name():
    trace = replace(group("x", DP, 1, 1), description="")
    assert any("number 1 of g_x (ranks 0-1)" in line for line in lines(snapshot(0, trace), snapshot(1)))


def test_a_cycle_is_reported():
    text_lines = lines(
        snapshot(0, world(5, 5)),
        snapshot(1, world(5, 5)),
        snapshot(2, world(5, 5), group("language.tp", TP, 8)),
        snapshot(3, world(4), group("language.tp", TP, 9, 9)),
    )
    assert EACH_OTHER in text_lines


@pytest.mark.parametrize(
    "snapshots",
    [
        pytest.param([snapshot(rank, world(5, 5)) for rank in range(4)], id="all are in one collective"),
        pytest.param([snapshot(rank) for rank in range(4)], id="all are in Python"),
        pytest.param([snapshot(0, world(5, 5)), *(snapshot(rank) for rank in (1, 2, 3))], id="one waits"),
    ],
)
def test_a_different_order_is_not_reported_without_a_cycle(snapshots):
    assert EACH_OTHER not in lines(*snapshots)


def test_a_collective_that_all_have_entered_comes_after_the_others():
    text_lines = lines(
        snapshot(0, world(4), group("vision.dp", DP, 2, 2)),
        snapshot(1, world(4), group("vision.dp", DP, 2, 2)),
        snapshot(2, world(5, 5)),
        snapshot(3, world(5, 5)),
    )
    assert text_lines[1].startswith("all_reduce number 5 of the world")
    assert text_lines[2] == "all_gather number 2 of vision.dp (ranks 0-1): all have entered it"


def test_the_report_of_a_stopped_rank_has_the_command_to_continue_it():
    text_lines = lines(snapshot(0, world(5, 5)), snapshot(1, state="T"), snapshot(2, world(5, 5)), snapshot(3, world(5, 5)))
    assert "rank 1 (vision.dp1), process 1001 on hosta, is stopped; kill -CONT 1001 continues it" in text_lines


@pytest.mark.parametrize(("state", "word"), [("D", "D"), ("Z", "Z"), ("", "exited")])
def test_a_rank_that_does_not_respond_is_reported_with_its_state(state, word):
    text_lines = lines(snapshot(0, world(5, 5)), replace(snapshot(1), traces=None, frames=(), state=state))
    assert f"rank 1 (vision.dp1), process 1001 on hosta, does not respond (state {word})" in text_lines


def test_the_stack_of_the_culprit_is_shown_down_to_what_the_script_has_called():
    late = snapshot(1, frames=[TORCHS, USERS, LOADERS, TORCHS, QUEUES])
    text_lines = lines(snapshot(0, world(5, 5)), late, snapshot(2, world(5, 5)), snapshot(3, world(5, 5)))
    at = text_lines.index("rank 1 (vision.dp1), process 1001 on hosta, is at")
    assert text_lines[at + 1 : at + 4] == [str(USERS), f"... {LOADERS}", f"... {QUEUES}"]
    assert text_lines[at + 4] == "stacks of all ranks: /run/logs/*.txt"


def test_without_frames_of_the_users_those_of_others_are_shown():
    text_lines = lines(snapshot(0, frames=[TORCHS]), snapshot(1))
    assert str(TORCHS) in text_lines
    assert not [line for line in text_lines if line.startswith("...")]


def test_of_many_places_four_are_shown():
    topology = Topology.from_modules({"vision": {"dp": 16}, "language": {"dp": 16}})
    apart = [snapshot(rank, frames=[replace(USERS, line=rank)]) for rank in range(32)]
    text_lines = HangReport.of(topology, 60.0, apart).text(Path("/run/logs/*.txt")).splitlines()
    assert len([line for line in text_lines if line.endswith("is at")]) == 4


def test_ranks_at_the_same_place_are_grouped():
    text_lines = lines(*(snapshot(rank) for rank in range(4)))
    assert "2 of vision (ranks 0-1), 2 of language (ranks 2-3) are at" in text_lines
    assert text_lines.count(str(USERS)) == 1


def test_ranks_that_do_not_respond_are_reported_one_by_one():
    silent = [replace(snapshot(rank), traces=None, frames=(), state="D") for rank in range(2)]
    assert len([line for line in lines(*silent) if "does not respond (state D)" in line]) == 2


def test_the_line_of_a_frame_is_shown_where_it_can_be_read():
    text_lines = lines(snapshot(0, frames=[replace(USERS, source="loss.backward()")]))
    assert text_lines[text_lines.index(str(USERS)) + 1] == "loss.backward()"


def test_of_many_collectives_six_are_shown():
    traces = [group(f"own{number}", DP, 1, 1) for number in range(9)]
    text_lines = lines(snapshot(0, *traces), snapshot(1))
    assert len([line for line in text_lines if "inside; not entered by" in line]) == 6
    assert "and 3 more collectives" in text_lines


def test_a_snapshot_survives_json():
    for one in (snapshot(2, world(5, 5), group("mine", None, 1), step=3), replace(snapshot(1), traces=None)):
        assert RankSnapshot.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_the_report_for_programs_names_culprits_waits_and_ranks():
    found = report(snapshot(0, world(5, 5)), snapshot(1), snapshot(2, world(5, 5)), snapshot(3, world(5, 5))).as_dict()
    assert found["culprits"] == [{"rank": 1, "label": "vision.dp1"}]
    (wait,) = found["waits"]
    assert (wait["group"], wait["operation"], wait["number"]) == ("the world", "all_reduce", 5)
    assert (wait["inside"], wait["missing"]) == ((0, 2, 3), (1,))
    assert [rank["label"] for rank in found["ranks"]] == ["vision.dp0", "vision.dp1", "language.tp0", "language.tp1"]


@pytest.mark.parametrize("innermost", [replace(TORCHS, function="recv"), BRIDGES])
def test_when_a_rank_waits_for_a_message_those_that_do_not_are_the_culprits(innermost):
    """torch's flight recorder does not record sends and receives over gloo."""
    found = report(snapshot(0, frames=(USERS, innermost)), *(snapshot(rank) for rank in (1, 2, 3)))
    assert (found.culprits, found.receiving, found.is_beyond_doubt) == ([1, 2, 3], [0], True)
    assert "  waiting for a message: rank 0 (vision.dp0)" in found.text(Path("stacks")).splitlines()


@pytest.mark.parametrize("frames", [(USERS,), (USERS, TORCHS)], ids=["outside of torch", "in a collective"])
def test_a_rank_that_waits_for_a_message_is_no_culprit_although_a_collective_waits_for_it(frames):
    found = report(
        snapshot(0, world(4), group("vision.dp", DP, 9, 9)),
        snapshot(1, world(4), group("vision.dp", DP, 8), frames=[USERS, BRIDGES]),
        snapshot(2, world(4), group("language.tp", TP, 9, 9)),
        snapshot(3, world(4), group("language.tp", TP, 8), frames=frames),
    )
    assert (found.culprits, found.receiving) == ([3], [1])


def test_where_only_ranks_that_wait_for_a_message_are_missing_those_that_wait_for_nothing_are_the_culprits():
    found = report(
        snapshot(0, world(4), group("vision.dp", DP, 9, 9)),
        snapshot(1, world(4), group("vision.dp", DP, 8), frames=[USERS, BRIDGES]),
        snapshot(2, world(4), frames=[USERS, BRIDGES]),
        snapshot(3, world(4)),
    )
    assert (found.culprits, found.receiving) == ([3], [1, 2])


@pytest.mark.parametrize(("timeout_s", "is_beyond_doubt"), [(60.0, True), (7200.0, False)])
def test_a_wait_within_the_timeout_of_the_collective_is_in_doubt(timeout_s, is_beyond_doubt):
    inside = snapshot(0, replace(world(3, 3), timeout_s=timeout_s))
    assert report(inside, *(snapshot(rank, world(2)) for rank in (1, 2, 3))).is_beyond_doubt is is_beyond_doubt


PIPELINE = Topology.from_modules({"vision": {"dp": 2}, "language": {"pp": 2}})
"""Ranks 0-1 are vision's, 2-3 language's stages."""
SHORT = 60.0


def forward(*messages, ranks=(0, 1, 2, 3), timeout_s=SHORT):
    """The group in which vision sends activations to language."""
    return GroupTrace(name="mimo_role.1.0.0", description="vision forward", ranks=ranks, timeout_s=timeout_s, messages=messages)


def sends(own, peer, posted, pending=0, *, has_all=True):
    return MessageTrace(own=own, peer=peer, is_send=True, posted=posted, pending=pending, has_all=has_all)


def receives(own, peer, posted, pending=0, *, has_all=True):
    return MessageTrace(own=own, peer=peer, is_send=False, posted=posted, pending=pending, has_all=has_all)


def of_pipeline(*snapshots):
    return HangReport.of(PIPELINE, SHORT, snapshots)


FIRST_STAGE = "rank 2 (language.pp0)"


def message_lines(found):
    return [line.strip() for line in found.text(Path("/run")).splitlines() if "a message:" in line]


def with_recorders(has_all):
    """Rank 0 is in a slow data loader, rank 2 waits for its second batch, and for none of rank 1, which has sent its own."""
    return of_pipeline(
        snapshot(0, forward(sends(0, 2, 1, has_all=has_all)), frames=[USERS, LOADERS]),
        snapshot(1, forward(sends(1, 2, 2, has_all=has_all))),
        snapshot(2, forward(receives(2, 0, 2, 1, has_all=has_all), receives(2, 1, 2, has_all=has_all))),
        snapshot(3),
    )


@pytest.mark.parametrize("has_all", [True, False])
def test_a_rank_that_has_not_sent_a_message_is_the_culprit_and_no_bystander(has_all):
    found = with_recorders(has_all)
    assert (found.culprits, found.is_beyond_doubt) == ([0], True)
    assert message_lines(found) == [f"waiting for a message: {FIRST_STAGE} from rank 0 (vision.dp0), which has not sent it"]


def test_of_a_batch_from_two_ranks_the_one_that_has_sent_its_part_is_no_culprit():
    """All messages of a batch are pending until the last is complete; the send of rank 1 is complete."""
    found = of_pipeline(
        snapshot(0, forward(sends(0, 2, 1))),
        snapshot(1, forward(sends(1, 2, 2))),
        snapshot(2, forward(receives(2, 0, 2, 1), receives(2, 1, 2, 1))),
        snapshot(3),
    )
    assert found.culprits == [0]
    assert message_lines(found) == [
        f"waiting for a message: {FIRST_STAGE} from rank 0 (vision.dp0), which has not sent it",
        f"waiting for a message: {FIRST_STAGE} from rank 1 (vision.dp1)",
    ]


def test_a_rank_that_does_not_receive_is_the_culprit():
    found = of_pipeline(
        snapshot(0, forward(sends(0, 2, 2, 1))),
        snapshot(1, forward(sends(1, 2, 2, 1))),
        snapshot(2, forward(receives(2, 0, 1), receives(2, 1, 1))),
        snapshot(3),
    )
    assert found.culprits == [2]
    assert message_lines(found) == [
        f"sending a message: rank 0 (vision.dp0), rank 1 (vision.dp1) to {FIRST_STAGE}, which does not receive it"
    ]


def test_a_rank_that_waits_for_a_message_is_no_culprit_of_those_that_wait_for_it():
    found = of_pipeline(
        snapshot(0, forward(sends(0, 2, 1))),
        snapshot(1, group("language.pp", (1, 2), 4, 4)),
        snapshot(2, forward(receives(2, 0, 2, 1)), group("language.pp", (1, 2), 3)),
        snapshot(3, group("last", (2, 3), 1, 1)),
    )
    assert found.culprits == [0]


def test_a_sender_that_others_wait_for_is_the_culprit_if_no_other_rank_is():
    """A send does not keep its rank from other work."""
    found = of_pipeline(
        snapshot(0, forward(sends(0, 2, 3, 1), receives(0, 2, 1))),
        snapshot(1),
        snapshot(2, forward(receives(2, 0, 2), sends(2, 0, 1), receives(2, 1, 1, 1))),
        snapshot(3),
    )
    assert found.culprits == [1]
    found = of_pipeline(
        snapshot(0, forward(sends(0, 2, 3, 1), receives(0, 2, 1))),
        snapshot(1),
        snapshot(2, forward(receives(2, 0, 2), sends(2, 0, 1)), group("pair", (0, 2), 1, 1)),
        snapshot(3),
    )
    assert found.culprits == [0]


def test_ranks_that_each_wait_for_a_message_of_the_other_wait_for_each_other():
    found = of_pipeline(
        snapshot(0, forward(receives(0, 2, 1, 1))), snapshot(1), snapshot(2, forward(receives(2, 0, 1, 1))), snapshot(3)
    )
    assert found.culprits == []
    expected = "  they wait for each other: some ranks call collectives or exchange messages in a different order"
    assert expected in found.text(Path("/run")).splitlines()


def test_a_rank_that_has_posted_a_receive_ahead_is_the_culprit_if_it_is_late_for_a_collective():
    found = of_pipeline(
        snapshot(0, world(5, 5), forward(sends(0, 2, 1))),
        snapshot(1, world(5, 5)),
        snapshot(2, world(4), forward(receives(2, 0, 2, 1)), frames=[USERS, LOADERS]),
        snapshot(3, world(5, 5)),
    )
    assert found.culprits == [2]


@pytest.mark.parametrize("other", [replace(snapshot(1), traces=None, frames=()), None], ids=["does not respond", "has ended"])
def test_a_peer_without_traces_has_not_posted_its_side(other):
    waits = snapshot(2, forward(receives(2, 1, 1, 1)))
    found = of_pipeline(snapshot(0), *([other] if other is not None else []), waits, snapshot(3))
    assert found.culprits == [1]


def test_ranks_of_a_message_are_those_within_the_group():
    pair = forward(receives(1, 0, 1, 1), ranks=(1, 3))
    assert message_lines(of_pipeline(snapshot(0), snapshot(1), snapshot(2), snapshot(3, pair))) == [
        "waiting for a message: rank 3 (language.pp1) from rank 1 (vision.dp1), which has not sent it"
    ]


def test_messages_in_the_world_have_the_ranks_of_the_job():
    trace = GroupTrace(name="0", description="default_pg", messages=(receives(3, 1, 1, 1),))
    found = of_pipeline(snapshot(0), snapshot(1), snapshot(2), snapshot(3, trace))
    assert (found.culprits, found.messages[0].group) == ([1], "the world")


@pytest.mark.parametrize(("timeout_s", "is_beyond_doubt"), [(SHORT, True), (7200.0, False)])
def test_a_message_within_its_timeout_is_in_doubt(timeout_s, is_beyond_doubt):
    waits = forward(receives(2, 0, 1, 1), timeout_s=timeout_s)
    assert of_pipeline(snapshot(0), snapshot(1), snapshot(2, waits), snapshot(3)).is_beyond_doubt is is_beyond_doubt


def test_of_many_ranks_that_others_wait_for_six_are_shown():
    topology = Topology.from_modules({"vision": {"dp": 8}, "language": {"dp": 8}})
    ranks = tuple(range(16))
    waits = [snapshot(0, forward(*(receives(0, peer, 1, 1) for peer in ranks[1:]), ranks=ranks)), *map(snapshot, ranks[1:])]
    found = HangReport.of(topology, SHORT, waits)
    assert len(message_lines(found)) == 6
    assert "  and 9 more ranks that others wait for" in found.text(Path("/run")).splitlines()


def test_the_report_for_programs_has_the_messages():
    (message,) = with_recorders(has_all=True).as_dict()["messages"]
    assert (message["rank"], message["peer"], message["is_send"], message["is_missing"]) == (2, 0, False, True)


def test_the_report_from_recorders_of_nccl_names_the_rank_that_has_not_sent_its_part_of_a_batch():
    """The first stage waits for the second batch of both ranks of vision. The last stage never uses the bridge."""
    recorders = [NcclRecorder("mimo_role.1.0.0", "vision forward") for _ in range(4)]
    recorders[0].batch_of_messages("send 0->2", is_complete=True)
    for _ in range(2):
        recorders[1].batch_of_messages("send 1->2", is_complete=True)
    for is_complete in (True, False):
        recorders[2].batch_of_messages("recv 2<-0", "recv 2<-1", is_complete=is_complete)
    traces = [from_dump(recorder.dump(), {"mimo_role.1.0.0": (0, 1, 2, 3)}) for recorder in recorders]
    found = of_pipeline(*(snapshot(rank, *traces[rank]) for rank in range(4)))
    assert found.culprits == [0]
    assert found.waits == []
    assert message_lines(found)[0] == f"waiting for a message: {FIRST_STAGE} from rank 0 (vision.dp0), which has not sent it"


def of_joining(*snapshots):
    return HangReport.of(TOPOLOGY, 72.5, snapshots, is_joining=True)


def joins(rank, *traces, joining_s=72.5, **more):
    return replace(snapshot(rank, *traces, **more), joining_s=joining_s)


def test_ranks_that_join_wait_for_those_that_do_not():
    found = of_joining(joins(0), joins(1, joining_s=3.0), snapshot(2))
    assert (found.culprits, found.is_beyond_doubt) == ([2, 3], True)
    first, second = found.text(Path("/run")).splitlines()[:2]
    late = "rank 2 (language.tp0), rank 3 (language.tp1)"
    assert first == f"joining has taken 72.5 s, longer than runtime.timeout_s: {late} held up the others"
    assert second == f"  joining: rank 0 (vision.dp0), rank 1 (vision.dp1); not joining: {late}"


def test_a_rank_that_is_stopped_while_it_joins_is_the_culprit():
    found = of_joining(joins(0), joins(1), joins(2, state="T"), joins(3))
    assert found.culprits == [2]


def test_where_all_ranks_join_the_one_that_has_not_entered_a_collective_is_the_culprit():
    found = of_joining(joins(0, world(2, 2)), joins(1, world(2, 2)), joins(2, world(1)), joins(3, world(2, 2)))
    assert found.culprits == [2]
    assert found.text(Path("/run")).splitlines()[1].endswith("; not joining: no rank")


def test_ranks_that_all_join_without_a_collective_are_shown():
    found = of_joining(*(joins(rank) for rank in range(4)))
    assert found.headline == "joining has taken 72.5 s, longer than runtime.timeout_s"
    assert "  2 of vision (ranks 0-1), 2 of language (ranks 2-3) are at" in found.text(Path("/run")).splitlines()
