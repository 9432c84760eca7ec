"""What a rank has called over its groups, in its order."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import HashStore

from mimo_role.rehearsal import call_log
from mimo_role.rehearsal.call_log import CallLog, progressions, script_lines
from mimo_role.rehearsal.group_creation import recorded_new_group
from mimo_role.rehearsal.objects import ObjectCollectives
from mimo_role.rehearsal.process_group import NAME, RehearsalGroup, register
from mimo_role.rehearsal.traffic import Traffic

WORLD = 8


@given(st.lists(st.integers(0, 10_000), max_size=200))
def test_progressions_have_the_numbers_in_their_order(numbers):
    assert [number for run in progressions(numbers) for number in range(*run)] == numbers


@given(st.integers(0, 50), st.integers(1, 1000), st.integers(1, 9))
def test_an_arithmetic_progression_is_one(start, count, step):
    assert len(progressions(range(start, start + count * step, step))) == 1


@pytest.fixture
def log():
    """The calls of rank 1, which has joined a world of ranks that do not exist."""
    log = CallLog()
    register(lambda _store, rank, size, _timeout: RehearsalGroup(rank, size, Traffic(), log))
    dist.init_process_group(NAME, store=HashStore(), rank=1, world_size=WORLD)
    log.created(dist.group.WORLD, range(WORLD))
    log.is_open = True
    yield log
    dist.destroy_process_group()


def texts(log, group=0):
    found = log.as_dict()
    return [found["texts"][text] for text, _, _ in found["groups"][group]["calls"]["calls"]]


def uneven():
    dist.all_gather([torch.empty(2) for _ in range(WORLD)], torch.ones(1))


OPERATIONS = [
    (lambda: dist.all_reduce(torch.ones(3, 2), dist.ReduceOp.MAX), "all_reduce(6 float32, max)"),
    (lambda: dist.broadcast(torch.ones(2, dtype=torch.int64), src=3), "broadcast(2 int64, from member 3)"),
    (lambda: dist.reduce(torch.ones(1), dst=2), "reduce(1 float32, sum, to member 2)"),
    (lambda: dist.all_gather([torch.empty(2) for _ in range(WORLD)], torch.ones(2)), "all_gather(2 float32)"),
    (uneven, "all_gather(1 float32)"),
    (
        lambda: dist.all_gather([torch.empty(1 + rank % 2) for rank in range(WORLD)], torch.ones(2)),
        "all_gather(12 float32 in parts of 1 to 2)",
    ),
    (lambda: dist.all_gather_into_tensor(torch.empty(2 * WORLD), torch.ones(2)), "all_gather(2 float32)"),
    (lambda: dist.reduce_scatter_tensor(torch.empty(1), torch.ones(WORLD)), "reduce_scatter(8 float32, sum)"),
    (lambda: dist.scatter(torch.empty(4), src=0), "scatter(4 float32, from member 0)"),
    (lambda: dist.gather(torch.empty(4), dst=0), "gather(4 float32, to member 0)"),
    (lambda: dist.all_to_all_single(torch.empty(WORLD), torch.ones(WORLD)), "all_to_all(float32)"),
    (dist.barrier, "barrier()"),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("call", "text"), OPERATIONS, ids=[text for _, text in OPERATIONS])
def test_an_operation_is_recorded_with_what_all_members_must_have(log, call, text):
    call()
    assert texts(log) == [text]


def test_parts_of_all_to_all_may_have_other_sizes_on_other_members(log):
    dist.all_to_all_single(torch.empty(9), torch.ones(16), [2, *[1] * 7], [2] * 8)
    assert texts(log) == ["all_to_all(float32)"]


def test_objects_and_new_groups_are_recorded_and_a_root_outside_of_the_group_is_an_error(log):
    objects, new_group = ObjectCollectives(None, log), recorded_new_group(dist.new_group, log)
    objects.all_gather_object([None] * WORLD, "x")
    pair = new_group([1, 3])
    log.created(pair, [1, 3])
    with pytest.raises(ValueError, match="Global rank 0 is not part of group"):
        objects.broadcast_object_list([None], src=0, group=pair)
    assert texts(log) == ["all_gather_object()", "new_group(ranks 1-3 in steps of 2)"]


def test_a_group_that_this_rank_is_not_in_has_no_calls(log):
    objects = ObjectCollectives(None, log)
    own = ["own"]
    objects.broadcast_object_list(own, src=2, group=dist.new_group([2, 3]))
    assert own == ["own"]
    assert texts(log) == []


def test_messages_have_their_ends_and_their_tag(log):
    dist.send(torch.ones(2), dst=4, tag=9)
    dist.recv(torch.ones(3, dtype=torch.int32), src=0)
    found = log.as_dict()
    sent, received = found["groups"][0]["messages"]
    assert (sent["between"], received["between"]) == ((1, 4, 9), (0, 1, 0))
    assert [found["texts"][each["calls"][0][0]] for each in (sent, received)] == ["2 float32", "3 int32"]


def test_only_the_first_calls_are_kept_and_all_are_counted(log, monkeypatch):
    monkeypatch.setattr(call_log, "KEPT_OF_A_GROUP", 3)
    for _ in range(5):
        dist.barrier()
    first = log.as_dict()["groups"][0]["calls"]
    assert (len(first["calls"]), first["count"]) == (3, 5)
    dist.barrier()
    assert log.as_dict()["groups"][0]["calls"]["checksum"] != first["checksum"]


def test_a_call_has_its_step_and_the_lines_of_the_script(log):
    log.step = 7
    dist.barrier()
    found = log.as_dict()
    ((_, place, step),) = found["groups"][0]["calls"]["calls"]
    assert step == 7
    assert found["texts"][place].endswith("in test_a_call_has_its_step_and_the_lines_of_the_script")
    assert script_lines().count("\n") <= 1


SCRIPT_WITH_A_THREAD = """
import atexit, threading
from mimo_role.rehearsal.call_log import CallLog

log = CallLog()
atexit.register(lambda: print(log.as_dict()["bridges"]["a bridge"]["count"]))
atexit.register(lambda: log.add_batch("a bridge"))

def save_in_the_background():
    threading.main_thread().join()  # until the script's last line has been passed
    log.add_batch("a bridge")

log.add_batch("a bridge")
log.around(lambda: threading.Thread(target=save_in_the_background).start())()
"""


def test_what_the_script_and_its_threads_call_is_recorded_and_nothing_before_or_after():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT_WITH_A_THREAD],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout == "1\n"
