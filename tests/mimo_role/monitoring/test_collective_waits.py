"""The waits of real ranks for collectives on the CPU."""

import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

import mimo_role
from mimo_role import Topology
from mimo_role.monitoring.collective_waits import CollectiveWaits
from mimo_role.monitoring.recorder import SHORTEST_WAIT_NS, Recorder
from mimo_role.monitoring.records import Flag, Kind
from mimo_role.monitoring.ring import Ring, read
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(120)]

TOPOLOGY = Topology.from_modules({"language": {"tp": 2}, "vision": {}})
"""Ranks 0 and 1 share `language.tp`."""
PATIENCE_S = 30.0


@contextmanager
def recorded(folder):
    """This rank's context; its waits are recorded."""
    ctx = mimo_role.current()
    recorder = Recorder(Ring.create(Path(folder, f"rank{ctx.rank}.recording"), ctx.rank, ctx.world_size))
    waits = CollectiveWaits(recorder)
    waits.install()
    try:
        yield ctx, recorder
    finally:
        waits.remove()


def running(path):
    recording = read(path)
    return [recording.names[each.name] for each in recording.open] if recording is not None else []


def until_the_other_waits(folder, name):
    """The time at which rank 0 was seen to wait; it has then waited long enough for a record."""
    deadline = time.monotonic() + PATIENCE_S
    while name not in running(Path(folder, "rank0.recording")):
        assert time.monotonic() < deadline
    seen_ns = time.monotonic_ns()
    while time.monotonic_ns() < seen_ns + SHORTEST_WAIT_NS:
        pass
    return seen_ns


def synchronous(ctx):
    dist.all_reduce(torch.ones(4), group=ctx.group("language", "tp"))


def asynchronous(ctx):
    work = dist.all_gather_into_tensor(torch.empty(8), torch.ones(4), group=ctx.group("language", "tp"), async_op=True)
    with ctx.span("between"):
        pass
    work.wait()


def of_the_world(_):
    dist.barrier()


def of_a_dtensor(ctx):
    partial = DTensor.from_local(torch.ones(4), ctx.mesh("language")["tp"], [Partial()])
    assert partial.redistribute(placements=[Replicate()]).to_local().sum().item() == 8


def of_a_dtensor_by_columns(ctx):
    """The function that starts this gather waits for it, too."""
    columns = DTensor.from_local(torch.ones(4, 6), ctx.mesh("language")["tp"], [Shard(1)], run_check=False)
    assert columns.redistribute(placements=[Replicate()]).to_local().sum().item() == 48


def of_a_dtensor_backward(ctx):
    """Whose gradient is summed over the axis: the input's, of a linear layer that is divided by columns."""
    mesh = ctx.mesh("language")["tp"]
    leaf = torch.ones(4, requires_grad=True)
    whole = DTensor.from_local(leaf, mesh, [Replicate()], run_check=False)
    whole.to_local(grad_placements=[Partial()]).sum().backward()
    assert leaf.grad.sum().item() == 8


def late(folder, collective, name):
    """Rank 1 enters a collective when it has seen rank 0 wait in it."""
    with recorded(folder) as (ctx, recorder), recorder.span(Kind.FORWARD, "language.0"):
        seen_ns = until_the_other_waits(folder, name) if ctx.rank == 1 else 0
        if ctx.role.has_language_module or name == "world":
            collective(ctx)
    return seen_ns


@pytest.mark.parametrize(
    ("collective", "name"),
    [
        (synchronous, "language.tp"),
        (asynchronous, "language.tp"),
        (of_the_world, "world"),
        (of_a_dtensor, "language.tp"),
        (of_a_dtensor_by_columns, "language.tp"),
        (of_a_dtensor_backward, "language.tp"),
    ],
)
def test_a_rank_that_waits_shows_it_and_records_how_long(tmp_path, collective, name):
    _, seen_ns, _ = run_ranks(late, TOPOLOGY, str(tmp_path), collective, name)
    recording = read(tmp_path / "rank0.recording")
    waits = [each for each in recording.records if each.kind == Kind.COLLECTIVE]
    assert [recording.names[each.name] for each in waits] == [name]
    (forward,) = (each for each in recording.records if each.kind == Kind.FORWARD)
    assert forward.begin_ns <= waits[0].begin_ns <= seen_ns <= waits[0].end_ns <= forward.end_ns


def others(folder):
    """A message for which rank 1 is seen to wait, and a collective that is waited for twice."""
    with recorded(folder) as (ctx, recorder):
        if not ctx.role.has_language_module:
            return
        group = ctx.group("language", "tp")
        if ctx.rank:
            dist.recv(torch.empty(2), group_src=0, group=group)
            until_the_other_waits(folder, "language.tp")
            dist.all_reduce(torch.ones(1), group=group)
        else:
            dist.send(torch.ones(2), group_dst=1, group=group)
            work = dist.all_reduce(torch.ones(1), group=group, async_op=True)
            work.wait()
            with recorder.span(Kind.SPAN, "again"):
                work.wait()


def test_messages_and_what_is_complete_are_not_recorded(tmp_path):
    run_ranks(others, TOPOLOGY, str(tmp_path))
    records, names = read(tmp_path / "rank0.recording").records, read(tmp_path / "rank0.recording").names
    assert [(each.kind, names[each.name]) for each in records] == [(Kind.COLLECTIVE, "language.tp"), (Kind.SPAN, "again")]
    assert all(each.kind == Kind.COLLECTIVE for each in read(tmp_path / "rank1.recording").records)


def failing(folder):
    """Rank 0 waits for too short a time; then rank 1 comes."""
    has_failed = Path(folder, "failed")
    with recorded(folder) as (ctx, _):
        if ctx.role.has_language_module:
            if ctx.rank == 1:
                deadline = time.monotonic() + PATIENCE_S
                while not has_failed.exists():
                    assert time.monotonic() < deadline
            work = dist.all_reduce(torch.ones(4), group=ctx.group("language", "tp"), async_op=True)
            if ctx.rank == 0:
                with pytest.raises(RuntimeError):
                    work.wait(timedelta(milliseconds=50))
                has_failed.touch()
            work.wait()


def test_a_wait_that_fails_is_marked(tmp_path):
    run_ranks(failing, TOPOLOGY, str(tmp_path))
    assert [each.flags for each in read(tmp_path / "rank0.recording").records] == [Flag.FAILED]


class OwnGroup(dist.ProcessGroup):
    """A group in Python, with one collective of its own and the others of its base class."""

    def __init__(self, store, rank, size):
        super().__init__(rank, size)
        gloo, kind = dist.ProcessGroupGloo(store, rank, size, timedelta(seconds=PATIENCE_S)), dist.ProcessGroup.BackendType.GLOO
        self._set_default_backend(kind)
        self._register_backend(torch.device("cpu"), kind, gloo)
        self._set_group_desc("own")
        self.calls = 0

    def allreduce(self, tensors, options):
        self.calls += 1
        return super().allreduce(tensors, options)


class OwnWork(dist.Work):
    """That is never complete."""

    def wait(self, timeout=timedelta(milliseconds=100)):
        return super().wait(timeout)


def of_python_classes(folder):
    with recorded(folder) as (ctx, _):
        store = dist.PrefixStore("own", dist.distributed_c10d._get_default_store())
        group = OwnGroup(store, ctx.rank, ctx.world_size)
        summed, first = torch.ones(2), torch.full((2,), float(ctx.rank))
        group.allreduce([summed], dist.AllreduceOptions()).wait()
        group.broadcast([first], dist.BroadcastOptions()).wait()
        with pytest.raises(RuntimeError, match="timed out"):
            OwnWork().wait()
        dist.barrier()
        return summed.tolist(), first.tolist(), group.calls


def test_groups_and_works_of_python_classes_do_what_they_did(tmp_path):
    assert run_ranks(of_python_classes, TOPOLOGY, str(tmp_path)) == [([3.0, 3.0], [0.0, 0.0], 1)] * 3


def test_torch_is_as_before_when_nothing_is_recorded_any_more():
    before = dict(vars(dist.ProcessGroup)), dict(vars(dist.Work))
    waits = CollectiveWaits(Recorder(None))
    waits.install()
    assert vars(dist.Work)["wait"] is not before[1]["wait"]
    waits.remove()
    assert (dict(vars(dist.ProcessGroup)), dict(vars(dist.Work))) == before
