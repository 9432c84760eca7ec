import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import Topology
from mimo_role.host.node_dir import stacks_file, trace_request_pipe, traces_file
from mimo_role.monitoring.diagnostics import STACKS_SIGNAL, enable_diagnostics, read_traces
from mimo_role.monitoring.flight_recorder import GroupTrace, MessageTrace, from_dump, traces
from mimo_role.testing import run_ranks
from tests.mimo_role.monitoring.nccl_recorder import NcclRecorder

ROOT = Path(__file__).parents[3]
THREE = Topology.from_modules({"vision": {}, "language": {"tp": 2}})
PATIENCE_S = 30.0

SCRIPT = """
import ctypes, sys, threading, time
from pathlib import Path
from mimo_role.monitoring.diagnostics import enable_diagnostics
enable_diagnostics(Path(sys.argv[1]), 3)
def work():
    print("running", flush=True)
    {}
def main():
    work()
main()
"""


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return value


@contextmanager
def running(folder, work):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(work), str(folder)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
    )
    try:
        assert process.stdout.readline() == b"running\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=PATIENCE_S)


IN_C = "__import__('re').match('(a+)+$', 'a' * 64 + 'b')"
"""A call that holds the interpreter for years, and that no signal ends."""


def stacks(folder, rank=3):
    try:
        return stacks_file(folder, rank).read_text()
    except OSError:
        return ""


def main_functions(text):
    """The functions of the main thread, innermost first."""
    main = re.split(r"^(?:Current thread|Thread) 0x.*$", text, flags=re.MULTILINE)[-1]
    return re.findall(r'^  File ".+", line \d+ in (.+)$', main, re.MULTILINE)


@pytest.mark.parametrize(
    "work",
    [
        pytest.param("while True: pass", id="a loop in Python"),
        pytest.param("time.sleep(1000)", id="a sleep"),
        pytest.param(IN_C, id="a call in C that holds the interpreter"),
        pytest.param("sum(1 for _ in iter(int, 1))", id="a loop in C"),
        pytest.param("lock = threading.Lock(); lock.acquire(); lock.acquire()", id="a deadlock"),
    ],
)
def test_a_busy_rank_writes_its_stacks(tmp_path, work):
    with running(tmp_path, work) as process:
        process.send_signal(STACKS_SIGNAL)
        text = until(lambda: "in <module>" in stacks(tmp_path) and stacks(tmp_path))
        assert main_functions(text)[-3:] == ["work", "main", "<module>"]
        assert process.poll() is None


def test_the_stacks_of_all_threads_are_written_the_main_one_last(tmp_path):
    with running(tmp_path, "threading.Thread(target=time.sleep, args=(1000,)).start(); time.sleep(1000)") as process:
        until(lambda: len(list(Path(f"/proc/{process.pid}/task").iterdir())) == 3)
        process.send_signal(STACKS_SIGNAL)
        text = until(lambda: "in <module>" in stacks(tmp_path) and stacks(tmp_path))
        assert len(re.findall(r"^(?:Current thread|Thread) 0x", text, re.MULTILINE)) == 3
        assert main_functions(text)[-3:] == ["work", "main", "<module>"]


def test_a_crash_in_c_goes_to_the_same_file(tmp_path):
    with running(tmp_path, "ctypes.string_at(0)") as process:
        assert process.wait(timeout=PATIENCE_S) == -signal.SIGSEGV
    assert stacks(tmp_path).startswith("Fatal Python error: Segmentation fault\n")
    assert main_functions(stacks(tmp_path))[-3:] == ["work", "main", "<module>"]


def is_requested(folder, rank):
    """Request traces, unless the rank is not yet waiting for the next request."""
    try:
        os.close(os.open(trace_request_pipe(folder, rank), os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return False
    return True


def request_traces(folder, rank):
    traces_file(folder, rank).unlink(missing_ok=True)
    until(lambda: is_requested(folder, rank))
    return until(lambda: traces_file(folder, rank).exists() and [read_traces(folder, rank)])[0]


def test_a_rank_without_torch_has_no_pending_collectives(tmp_path):
    with running(tmp_path, "time.sleep(1000)"):
        assert request_traces(tmp_path, 3) == []
        assert request_traces(tmp_path, 3) == []


def test_a_rank_in_a_python_loop_writes_its_traces(tmp_path):
    with running(tmp_path, "while True: pass"):
        assert request_traces(tmp_path, 3) == []


def test_a_rank_that_holds_the_gil_writes_stacks_but_no_traces(tmp_path):
    with running(tmp_path, IN_C) as process:

        def is_in_c():
            os.truncate(stacks_file(tmp_path, 3), 0)
            process.send_signal(STACKS_SIGNAL)
            return main_functions(until(lambda: "in <module>" in stacks(tmp_path) and stacks(tmp_path)))[0] == "match"

        until(is_in_c)
        os.close(os.open(trace_request_pipe(tmp_path, 3), os.O_RDWR | os.O_NONBLOCK))
        assert is_in_c()
        assert read_traces(tmp_path, 3) is None


def test_without_a_node_directory_nothing_is_written(tmp_path):
    enable_diagnostics(tmp_path / "gone", 0)
    assert list(tmp_path.iterdir()) == []


def in_a_collective(folder):
    """Rank 1 waits for rank 2, which requests its traces as the agent would and then joins the collective."""
    folder = Path(folder)
    ctx = mimo_role.current()
    enable_diagnostics(folder, ctx.rank)
    pids = [None] * 3
    dist.all_gather_object(pids, os.getpid())
    if ctx.rank == 0:
        return None
    tp = ctx.group("language", "tp")
    dist.all_reduce(torch.ones(()), group=tp)
    if ctx.rank == 1:
        dist.all_reduce(torch.ones(()), group=tp)
        return None

    def of_the_second():  # rank 1 may still be in the first one, which this rank has left
        return [trace for trace in request_traces(folder, 1) if trace.waiting and trace.ranks == (1, 2) and trace.entered > 1]

    found = until(of_the_second)
    own = [trace for trace in traces() if trace.name == found[0].name]
    os.kill(pids[1], STACKS_SIGNAL)
    text = until(lambda: "in all_reduce" in stacks(folder, 1) and stacks(folder, 1))
    dist.all_reduce(torch.ones(()), group=tp)
    return found, own, main_functions(text)


@pytest.mark.ranks
def test_a_pending_collective_has_its_group_members_number_and_stack(tmp_path):
    """Fails when the private interface of torch's flight recorder changes."""
    _, _, ((found,), (own,), functions) = run_ranks(in_a_collective, THREE, str(tmp_path))
    assert (found.description, found.ranks, found.entered) == ("language.tp", (1, 2), 2)
    assert dict(found.waiting) == {2: "all_reduce"}
    assert (own.name, own.description, own.ranks, own.entered, own.waiting) == (found.name, "language.tp", (1, 2), 1, {})
    assert functions.index("all_reduce") < functions.index("in_a_collective")


def in_the_world(folder):
    folder = Path(folder)
    enable_diagnostics(folder, mimo_role.current().rank)
    dist.barrier()
    mine = dist.new_group([0, 2], group_desc="mine")
    if mimo_role.current().rank == 0:
        # One of a group that the script has made, and one of the world. wait() is only called for the first.
        work = dist.all_reduce(torch.ones(()), group=mine, async_op=True)
        dist.all_reduce(torch.ones(()))
        work.wait()
        return None
    if mimo_role.current().rank == 1:
        dist.all_reduce(torch.ones(()))
        return None
    found = until(lambda: len(them := [trace for trace in request_traces(folder, 0) if trace.waiting]) == 2 and them)
    dist.all_reduce(torch.ones(()), group=mine)
    dist.all_reduce(torch.ones(()))
    return sorted((trace.description, trace.ranks) for trace in found)


@pytest.mark.ranks
def test_traces_include_the_world_and_groups_made_by_the_script(tmp_path):
    assert run_ranks(in_the_world, THREE, str(tmp_path))[2] == [("default_pg", None), ("mine", (0, 2))]


DUMP = {
    "entries": [
        {
            "process_group": ["5", "mine"],
            "is_p2p": False,
            "collective_seq_id": 1,
            "profiling_name": "gloo:all_reduce",
            "retired": True,
        },
        {
            "process_group": ["5", "mine"],
            "is_p2p": False,
            "collective_seq_id": 2,
            "profiling_name": "nccl:_all_gather_base",
            "retired": False,
        },
        {
            "process_group": ["5", "mine"],
            "is_p2p": True,
            "collective_seq_id": 9,
            "profiling_name": "nccl:send 0->1",
            "retired": False,
        },
        {
            "process_group": ["6", "gone"],
            "is_p2p": False,
            "collective_seq_id": 4,
            "profiling_name": "nccl:broadcast",
            "retired": True,
        },
    ]
}


def test_a_dump_is_read_by_group():
    send = MessageTrace(own=0, peer=1, is_send=True, posted=1, pending=1, has_all=False)
    assert from_dump(DUMP, {"5": (0, 2)}) == [
        GroupTrace(name="5", description="mine", ranks=(0, 2), entered=2, waiting={2: "_all_gather_base"}, messages=(send,)),
        GroupTrace(name="6", description="gone", ranks=None, entered=4, waiting={}),
    ]


@pytest.fixture
def recorder():
    return NcclRecorder("5", "mine")


def trace_of(recorder, forgotten=0):
    (found,) = from_dump(recorder.dump(forgotten), {"5": (0, 2)})
    return found


def pending(trace):
    return {("send" if each.is_send else "receive", each.peer): (each.posted, each.pending) for each in trace.messages}


def test_a_batch_of_messages_is_no_collective(recorder):
    recorder.batch_of_messages("send 0->1", is_complete=True)
    recorder.batch_of_messages("send 0->1", "send 0->1", "recv 0<-1", is_complete=False)
    found = trace_of(recorder)
    assert (found.entered, found.waiting, found.timeout_s) == (0, {}, 600.0)
    assert pending(found) == {("send", 1): (3, 2), ("receive", 1): (1, 1)}


def test_the_operations_of_a_complete_batch_are_complete(recorder):
    recorder.batch_of_messages("send 0->1", "recv 0<-1", is_complete=True)
    recorder.batch_of_collectives("all_reduce", "all_reduce", is_complete=True)
    found = trace_of(recorder)
    assert (found.entered, found.waiting, found.timeout_s) == (1, {}, 0.0)
    assert pending(found) == {("send", 1): (1, 0), ("receive", 1): (1, 0)}


def test_a_batch_of_collectives_is_one_collective(recorder):
    recorder.message("send 0->1", is_complete=True)
    recorder.batch_of_collectives("all_reduce", "all_reduce", is_complete=False)
    found = trace_of(recorder)
    assert (found.entered, found.waiting) == (1, {1: "all_reduce"})
    assert pending(found) == {("send", 1): (1, 0)}


def test_a_batch_whose_collectives_are_not_recorded_is_a_collective(recorder):
    """As in torch before 2.7."""
    recorder.message("send 0->1", is_complete=True)
    recorder.batch_of_collectives(is_complete=False)
    assert trace_of(recorder).waiting == {1: "coalesced"}


def test_a_batch_of_messages_of_which_the_recorder_has_only_the_end_is_no_collective(recorder):
    recorder.collective("all_reduce", is_complete=True)
    recorder.batch_of_messages("send 0->1", is_complete=False)
    recorder.message("recv 0<-1", is_complete=False)
    assert trace_of(recorder).waiting == {}
    assert trace_of(recorder, forgotten=2).waiting == {}


def test_messages_outside_of_a_batch_are_pending_one_by_one(recorder):
    recorder.message("recv 0<-1", is_complete=True)
    recorder.message("recv 0<-1", is_complete=False)
    assert pending(trace_of(recorder)) == {("receive", 1): (2, 1)}


@pytest.mark.parametrize(("backend", "waiting"), [("nccl", {1: "all_reduce"}), ("gloo", {})])
def test_an_nccl_operation_whose_events_are_not_recorded_yet_is_pending(recorder, backend, waiting):
    recorder.collective("all_reduce", is_complete=True)
    (entry,) = recorder.dump()["entries"]
    entry.update(retired=False, profiling_name=f"{backend}:all_reduce")
    assert trace_of(recorder).waiting == waiting


def test_a_recorder_that_has_forgotten_operations_does_not_have_all(recorder):
    recorder.message("recv 0<-1", is_complete=True)
    recorder.message("recv 0<-1", is_complete=False)
    assert [message.has_all for message in trace_of(recorder).messages] == [True]
    assert [message.has_all for message in trace_of(recorder, forgotten=1).messages] == [False]


def test_traces_with_messages_survive_json(recorder):
    recorder.batch_of_messages("send 0->1", "recv 0<-1", is_complete=False)
    found = trace_of(recorder)
    assert GroupTrace.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_a_dump_without_entries_is_empty():
    assert from_dump({"version": "2.10"}, {}) == []


def test_a_process_without_groups_has_no_traces():
    assert traces() == []


@pytest.mark.parametrize("text", ["", "{", "[{}]", "3", "[3]"])
def test_an_incomplete_traces_file_is_ignored(tmp_path, text):
    traces_file(tmp_path, 0).write_text(text)
    assert read_traces(tmp_path, 0) is None
