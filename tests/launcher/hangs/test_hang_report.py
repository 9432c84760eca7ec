"""Who waits for whom, and who holds up all."""

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
from mimo_role.monitoring.flight_recorder import GroupTrace

TOPOLOGY = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2}})
"""Ranks 0-1 are vision's, 2-3 language's."""

USERS = Frame("/home/me/train.py", 7, "step", "", is_users=True)
TORCHS = Frame(
    "/env/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", 3000, "all_reduce", "", is_users=False
)
LOADERS = Frame("/env/lib/python3.11/site-packages/torch/utils/data/dataloader.py", 700, "__next__", "", is_users=False)
QUEUES = Frame("/usr/lib/python3.11/queue.py", 180, "get", "", is_users=False)


def world(entered, *waiting):
    return GroupTrace(name="0", description="default_pg", entered=entered, waiting=dict.fromkeys(waiting, "all_reduce"))


def group(name, ranks, entered, *waiting, operation="all_gather"):
    return GroupTrace(
        name=f"g_{name}", description=name, ranks=ranks, entered=entered, waiting=dict.fromkeys(waiting, operation)
    )


def sighting(rank, *traces, state="S", frames=(USERS,), step=None):
    return RankSnapshot(rank=rank, pid=1000 + rank, host="hosta", state=state, step=step, frames=tuple(frames), traces=traces)


def report(*sightings):
    return HangReport.of(TOPOLOGY, 60.0, sightings)


def lines(*sightings):
    return [line.strip() for line in report(*sightings).text(Path("/run/logs")).splitlines()]


TP, DP = (2, 3), (0, 1)
EACH_OTHER = "they wait for each other: some ranks call collectives in another order"


@pytest.mark.parametrize(
    ("sightings", "culprits"),
    [
        pytest.param(
            [sighting(0, world(5, 5)), sighting(1, world(5, 5)), sighting(2, world(4)), sighting(3, world(5, 5))],
            [2],
            id="one rank is late",
        ),
        pytest.param(
            [sighting(0, world(5, 5)), sighting(1, world(4)), sighting(2, world(3)), sighting(3, world(5, 5))],
            [1, 2],
            id="two ranks are late",
        ),
        pytest.param(
            [sighting(0, world(1, 1)), *(sighting(rank) for rank in (1, 2, 3))], [1, 2, 3], id="the first collective of all"
        ),
        pytest.param(
            [
                sighting(0, world(5, 5)),
                sighting(1, world(5, 5)),
                sighting(2, world(4), group("language.tp", TP, 9, 9)),
                sighting(3, world(4), group("language.tp", TP, 8)),
            ],
            [3],
            id="a chain over two groups",
        ),
        pytest.param(
            [
                sighting(0, world(4), group("vision.dp", DP, 3)),
                sighting(1, world(5, 5), group("vision.dp", DP, 3)),
                sighting(2, world(4), group("mine", (0, 2), 1, 1)),
                sighting(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [0],
            id="a chain over three groups",
        ),
        pytest.param(
            [
                sighting(0, world(5, 5)),
                sighting(1, world(5, 5)),
                sighting(2, world(5, 5), group("language.tp", TP, 8)),
                sighting(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [],
            id="a cycle",
        ),
        pytest.param(
            [sighting(0, world(4)), sighting(1, world(4)), sighting(2, world(4)), sighting(3, world(4))],
            [],
            id="all are in Python",
        ),
        pytest.param([sighting(rank, world(5, 5)) for rank in range(4)], [], id="all are in one collective"),
        pytest.param(
            [sighting(0, world(5, 5)), sighting(1, world(4), state="T"), sighting(2, world(4)), sighting(3, world(5, 5))],
            [1],
            id="a stopped rank",
        ),
        pytest.param(
            [sighting(0, world(4)), sighting(1, world(4), state="t"), sighting(2, world(4)), sighting(3, world(4))],
            [1],
            id="a rank in a debugger",
        ),
        pytest.param(
            [
                sighting(0, world(5, 5)),
                replace(sighting(1), traces=None, frames=()),
                sighting(2, world(5, 5)),
                sighting(3, world(5, 5)),
            ],
            [1],
            id="a rank that does not answer",
        ),
        pytest.param(
            [sighting(0, world(5, 5)), sighting(2, world(5, 5)), sighting(3, world(5, 5))], [1], id="a rank that has ended"
        ),
        pytest.param(
            [sighting(0, group("mine", None, 3, 3)), sighting(1, group("mine", None, 2)), sighting(2, world(0))],
            [1],
            id="a group of which nobody knows the members",
        ),
        pytest.param(
            [sighting(0, group("mine", None, 3, 3)), sighting(1, group("mine", (*DP, 2), 3, 3)), sighting(2)],
            [2],
            id="a group of which one knows the members",
        ),
        pytest.param(
            [sighting(0, group("mine", (*DP, 2), 3, 3)), sighting(1, group("mine", None, 3, 3)), sighting(2)],
            [2],
            id="the same the other way round",
        ),
        pytest.param(
            [sighting(0, world(6, 5, 6)), sighting(1, world(5, 5)), sighting(2, world(4)), sighting(3, world(6, 5, 6))],
            [2],
            id="several in flight",
        ),
        pytest.param(
            [sighting(0, world(5, 5)), sighting(1, world(9)), sighting(2, world(4)), sighting(3, world(9))],
            [2],
            id="some have left it already",
        ),
        pytest.param(
            [
                sighting(0, world(5, 5)),
                sighting(1, world(5, 5)),
                sighting(2, world(4), group("language.tp", TP, 9, 9)),
                sighting(3, world(4), group("language.tp", TP, 9, 9)),
            ],
            [2, 3],
            id="two are in a collective that is complete and goes no further",
        ),
    ],
)
def test_those_hold_up_the_others_for_whom_they_wait_and_who_wait_for_nobody(sightings, culprits):
    assert report(*sightings).culprits == culprits
    assert report(*reversed(sightings)).culprits == culprits


RANKS = range(4)
STATES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=4, max_size=4)


@given(STATES)
def test_in_one_group_the_culprits_are_those_that_lag_behind(states):
    """Of each rank: how many collectives it has entered, and whether it waits in the last one."""
    sightings = [
        sighting(rank, *([world(entered, *([entered] if waits else []))] if entered else []))
        for rank, (entered, waits) in enumerate(states)
    ]
    furthest = max((entered for entered, waits in states if waits), default=0)
    slowest = min(entered for entered, _ in states)
    behind = {rank for rank in RANKS if states[rank][0] < furthest}
    waiting = {rank for rank, (entered, waits) in enumerate(states) if waits and entered > slowest}
    assert set(report(*sightings).culprits) == behind - waiting


@given(STATES)
def test_any_report_can_be_told_and_written(states):
    found = report(
        *(sighting(rank, world(entered, *([entered] if waits else []))) for rank, (entered, waits) in enumerate(states))
    )
    assert found.text(Path("/run"))
    assert json.loads(json.dumps(found.as_dict()))["headline"] == found.headline


def test_the_headline_tells_step_time_and_culprit():
    sightings = [
        sighting(0, world(5, 5), step=12),
        sighting(1, world(5, 5), step=11),
        sighting(2),
        sighting(3, world(5, 5), step=12),
    ]
    assert report(*sightings).headline == "no progress in step 12 for 60 s: rank 2 (language.tp0) held up the others"
    assert report(sighting(0), sighting(1)).headline == "no progress for 60 s"


def test_a_collective_is_told_by_group_number_and_ranks():
    told = lines(
        sighting(0), sighting(1), sighting(2, group("language.tp", TP, 9, 9)), sighting(3, group("language.tp", TP, 8))
    )
    assert (
        "all_gather number 9 of language.tp (ranks 2-3): rank 2 (language.tp0) inside; not entered by rank 3 (language.tp1)"
        in told
    )


def test_the_world_is_called_the_world():
    told = lines(sighting(0, world(5, 5)), sighting(1, world(4)), sighting(2, world(4)), sighting(3, world(4)))
    assert (
        "all_reduce number 5 of the world (ranks 0-3): rank 0 (vision.dp0) inside; "
        "not entered by rank 1 (vision.dp1), rank 2 (language.tp0), rank 3 (language.tp1)" in told
    )


def test_a_group_without_a_description_is_called_by_its_name():
    trace = replace(group("x", DP, 1, 1), description="")
    assert any("number 1 of g_x (ranks 0-1)" in line for line in lines(sighting(0, trace), sighting(1)))


def test_a_cycle_is_called_one():
    told = lines(
        sighting(0, world(5, 5)),
        sighting(1, world(5, 5)),
        sighting(2, world(5, 5), group("language.tp", TP, 8)),
        sighting(3, world(4), group("language.tp", TP, 9, 9)),
    )
    assert EACH_OTHER in told


@pytest.mark.parametrize(
    "sightings",
    [
        pytest.param([sighting(rank, world(5, 5)) for rank in range(4)], id="all are in one collective"),
        pytest.param([sighting(rank) for rank in range(4)], id="all are in Python"),
        pytest.param([sighting(0, world(5, 5)), *(sighting(rank) for rank in (1, 2, 3))], id="one waits"),
    ],
)
def test_nobody_is_said_to_call_in_another_order_where_there_is_no_cycle(sightings):
    assert EACH_OTHER not in lines(*sightings)


def test_a_collective_that_all_have_entered_is_told_as_such_after_the_others():
    told = lines(
        sighting(0, world(4), group("vision.dp", DP, 2, 2)),
        sighting(1, world(4), group("vision.dp", DP, 2, 2)),
        sighting(2, world(5, 5)),
        sighting(3, world(5, 5)),
    )
    assert told[1].startswith("all_reduce number 5 of the world")
    assert told[2] == "all_gather number 2 of vision.dp (ranks 0-1): all have entered it"


def test_a_stopped_rank_can_be_let_go_on():
    told = lines(sighting(0, world(5, 5)), sighting(1, state="T"), sighting(2, world(5, 5)), sighting(3, world(5, 5)))
    assert "rank 1 (vision.dp1), process 1001 on hosta, is stopped; kill -CONT 1001 would let it go on" in told


@pytest.mark.parametrize(("state", "word"), [("D", "D"), ("Z", "Z"), ("", "ended")])
def test_a_rank_that_does_not_answer_is_told_with_its_state(state, word):
    told = lines(sighting(0, world(5, 5)), replace(sighting(1), traces=None, frames=(), state=state))
    assert f"rank 1 (vision.dp1), process 1001 on hosta, does not answer (state {word})" in told


def test_the_stack_of_the_culprit_is_shown_down_to_what_the_script_has_called():
    late = sighting(1, frames=[TORCHS, USERS, LOADERS, TORCHS, QUEUES])
    told = lines(sighting(0, world(5, 5)), late, sighting(2, world(5, 5)), sighting(3, world(5, 5)))
    at = told.index("rank 1 (vision.dp1), process 1001 on hosta, is at")
    assert told[at + 1 : at + 4] == [str(USERS), f"... {LOADERS}", f"... {QUEUES}"]
    assert told[at + 4] == "stacks of all ranks: /run/logs/rank*.stacks.txt"


def test_without_frames_of_the_users_those_of_others_are_shown():
    told = lines(sighting(0, frames=[TORCHS]), sighting(1))
    assert str(TORCHS) in told
    assert not [line for line in told if line.startswith("...")]


def test_of_many_places_a_few_are_shown():
    topology = Topology.from_modules({"vision": {"dp": 16}, "language": {"dp": 16}})
    apart = [sighting(rank, frames=[replace(USERS, line=rank)]) for rank in range(32)]
    told = HangReport.of(topology, 60.0, apart).text(Path("/run/logs")).splitlines()
    assert len([line for line in told if line.endswith("is at")]) == 4


def test_ranks_at_the_same_place_are_told_of_together():
    told = lines(*(sighting(rank) for rank in range(4)))
    assert "2 of vision (ranks 0-1), 2 of language (ranks 2-3) are at" in told
    assert told.count(str(USERS)) == 1


def test_ranks_that_do_not_answer_are_told_of_one_by_one():
    silent = [replace(sighting(rank), traces=None, frames=(), state="D") for rank in range(2)]
    assert len([line for line in lines(*silent) if "does not answer (state D)" in line]) == 2


def test_the_line_of_a_frame_is_shown_where_it_can_be_read():
    told = lines(sighting(0, frames=[replace(USERS, source="loss.backward()")]))
    assert told[told.index(str(USERS)) + 1] == "loss.backward()"


def test_of_many_collectives_a_few_are_shown():
    traces = [group(f"own{number}", DP, 1, 1) for number in range(9)]
    told = lines(sighting(0, *traces), sighting(1))
    assert len([line for line in told if "inside; not entered by" in line]) == 6
    assert "and 3 more collectives" in told


def test_a_sighting_survives_json():
    for one in (sighting(2, world(5, 5), group("mine", None, 1), step=3), replace(sighting(1), traces=None)):
        assert RankSnapshot.from_dict(json.loads(json.dumps(one.as_dict()))) == one


def test_the_report_for_programs_names_culprits_waits_and_ranks():
    found = report(sighting(0, world(5, 5)), sighting(1), sighting(2, world(5, 5)), sighting(3, world(5, 5))).as_dict()
    assert found["culprits"] == [{"rank": 1, "label": "vision.dp1"}]
    (wait,) = found["waits"]
    assert (wait["group"], wait["operation"], wait["number"]) == ("the world", "all_reduce", 5)
    assert (wait["inside"], wait["missing"]) == ((0, 2, 3), (1,))
    assert [rank["label"] for rank in found["ranks"]] == ["vision.dp0", "vision.dp1", "language.tp0", "language.tp1"]


def test_a_rank_that_waits_for_a_message_points_at_those_that_do_not():
    """torch's recorder does not tell of sends and receives over gloo."""
    receives = replace(TORCHS, function="recv")
    found = report(sighting(0, frames=(USERS, receives)), *(sighting(rank) for rank in (1, 2, 3)))
    assert (found.culprits, found.receiving, found.is_beyond_doubt) == ([1, 2, 3], [0], True)
    assert "  waiting for a message: rank 0 (vision.dp0)" in found.text(Path("stacks")).splitlines()


@pytest.mark.parametrize(("timeout_s", "is_beyond_doubt"), [(60.0, True), (7200.0, False)])
def test_a_wait_within_the_collectives_own_limit_may_go_on(timeout_s, is_beyond_doubt):
    inside = sighting(0, replace(world(3, 3), timeout_s=timeout_s))
    assert report(inside, *(sighting(rank, world(2)) for rank in (1, 2, 3))).is_beyond_doubt is is_beyond_doubt
