"""The schedule's messages under NCCL's rules: each communicator runs its batches one after the other, without tags.

A step runs over gloo, with NCCL's groups, while every rank records what it posts and waits for; then the records are simulated
by NCCL's rules. A batch is one operation of its communicator: it begins when those before it have completed, and completes when
each of its messages has been matched in a batch that has begun. Between two ranks, messages match in the order of posting.
What a rank posts after a wait is not posted before that wait has completed. Where a rank computes or takes memory, CUDA may
wait for all that runs on the device: it loads kernels at their first use, and frees memory that is cached.
"""

import os
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import Topology
from mimo_role.bridge import messages, nccl_channels, transfer, transfer_tensors
from mimo_role.pipeline import schedule
from mimo_role.pipeline.step_executor import StepExecutor
from mimo_role.resharding import transfer_plan
from mimo_role.testing import run_ranks
from tests.mimo_role.bridge.bridge_programs import program_of, run_programs
from tests.mimo_role.pipeline.test_schedule import LAYOUTS, in_parts, step

pytestmark = pytest.mark.ranks


class Message(NamedTuple):
    is_send: bool
    peer: int
    tag: int


class Post(NamedTuple):
    number: int
    communicator: str
    messages: list[Message]


class Wait(NamedTuple):
    number: int


class Synchronization(NamedTuple):
    """A place where the device may wait for all that the rank has posted."""


class RecordedWork:
    """The work of a message under NCCL: that of its whole batch."""

    def __init__(self, records, number, work):
        self.records, self.number, self.work = records, number, work

    def wait(self):
        self.records.append(Wait(self.number))
        self.work.wait()


@contextmanager
def recorded():
    """NCCL's groups and batches over gloo; yields a list to which what this rank posts and waits for is appended."""
    records, original = [], dist.batch_isend_irecv

    def batch(operations):
        works = original(operations)
        (communicator,) = {operation.group.group_name for operation in operations}
        messages = [Message(operation.op is dist.isend, operation.peer, operation.tag) for operation in operations]
        records.append(Post(len(records), communicator, messages))
        return [RecordedWork(records, records[-1].number, work) for work in works]

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(nccl_channels, "uses_nccl", return_value=True))
        for module in (messages, transfer, transfer_tensors):
            patches.enter_context(mock.patch.object(module, "is_one_operation", return_value=True))
        patches.enter_context(mock.patch("torch.distributed.batch_isend_irecv", batch))
        yield records


SYNCHRONIZING = [(StepExecutor, "_do_forward"), (StepExecutor, "_do_backward"), (transfer_tensors.TransferTensors, "__init__")]


def synchronizing(records, original):
    def method(*args, **kwargs):
        records.append(Synchronization())
        return original(*args, **kwargs)

    return method


def recorded_step(topology, batches, slack, is_on_device):
    """Run a step; return this rank's records."""
    transfer_plan.WORTH_SHARING = 0  # replicas divide even the little that is sent here; this process exits with the test
    with recorded() as records, ExitStack() as patches:
        patches.enter_context(mock.patch.object(schedule, "_receives_are_kernels", return_value=is_on_device))
        for owner, name in SYNCHRONIZING:
            patches.enter_context(mock.patch.object(owner, name, synchronizing(records, getattr(owner, name))))
        mimo_role.init(topology, backend="gloo", timeout_s=50)
        connected = len(records)
        step(batches, (), slack)
    assert len(records) > connected, "the step posts batches"
    return records


def recorded_far_ahead(topology, batches):
    """One side goes forward with all batches and then back; the other goes forward and back with each."""
    with recorded() as records:
        bridge = mimo_role.init(topology, backend="gloo", timeout_s=50).bridge("vision")
        if mimo_role.current().rank == 0:
            sent = [torch.ones(2, 8, requires_grad=True) for _ in range(batches)]
            torch.autograd.backward([bridge(activations, batch_size=2) for activations in sent])
            assert all(bool((activations.grad == 1).all()) for activations in sent)
        else:
            for _ in range(batches):
                bridge(batch_size=2, sample_shape=(8,), dtype=torch.float32).sum().backward()
        mimo_role.shutdown()
    return records


def unfinished(records):
    """Simulate the records; return the ranks that never complete theirs."""
    queues = defaultdict(list)
    at = [0] * len(records)
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(records):
            posted = [number for (other, _), queue in queues.items() if other == rank for number, _ in queue]
            while at[rank] < len(own) and not is_blocked(own[at[rank]], posted):
                record = own[at[rank]]
                if isinstance(record, Post):
                    queues[rank, record.communicator].append((record.number, list(record.messages)))
                    posted.append(record.number)
                at[rank] += 1
                moved = True
        for (rank, communicator), queue in list(queues.items()):
            for peer in {message.peer for message in begun(queue) if message.is_send}:
                sent = [message for message in begun(queue) if message.is_send and message.peer == peer]
                theirs = begun(queues[peer, communicator])
                awaited = [message for message in theirs if not message.is_send and message.peer == rank]
                for send, receive in zip(sent, awaited, strict=False):
                    assert send.tag == receive.tag, f"rank {peer} would receive another message of rank {rank}"
                    begun(queue).remove(send)
                    theirs.remove(receive)
                    moved = True
        for queue in queues.values():
            while queue and not queue[0][1]:
                queue.pop(0)
                moved = True
    return [rank for rank, own in enumerate(records) if at[rank] < len(own)]


def is_blocked(record, posted):
    """Whether a rank with these operations in flight cannot go on to what comes after a record."""
    return bool(posted) if isinstance(record, Synchronization) else isinstance(record, Wait) and record.number in posted


def begun(queue):
    """The messages of a communicator's first batch that have not been matched yet."""
    return queue[0][1] if queue else []


def test_the_simulation_finds_two_ranks_that_both_send_first():
    def sends_to(rank):
        return Message(True, rank, 7), Message(False, rank, 7)

    one_by_one = [[Post(number, "world", [message]) for number, message in enumerate(sends_to(1 - rank))] for rank in (0, 1)]
    together = [[Post(0, "world", list(sends_to(1 - rank)))] for rank in (0, 1)]
    assert unfinished([[*posts, Wait(1)] for posts in one_by_one]) == [0, 1]
    assert unfinished([[*posts, Wait(0)] for posts in together]) == []


@pytest.mark.parametrize("slack", [0, 1, 2])
@pytest.mark.parametrize(("modules", "layout"), LAYOUTS)
def test_all_ranks_complete_under_nccls_rules(modules, layout, slack):
    topology = Topology.from_modules(modules, layout=layout)
    records = run_ranks(recorded_step, topology.world_size, topology, in_parts(*[4] * 9), slack, True)
    assert all({Post, Wait, Synchronization} <= set(map(type, own)) for own in records)
    assert unfinished(records) == []


def test_a_rank_that_receives_before_it_has_sent_what_its_peer_waits_for_blocks_when_the_device_waits():
    """As in the first step on a GPU, where the first forward loads its kernels."""
    topology = Topology.from_modules({"vision": {}, "language": {}})
    records = run_ranks(recorded_step, 2, topology, in_parts(*[4] * 3), 0, False)
    assert unfinished(records) == [0, 1]


def test_a_sender_may_be_any_number_of_batches_ahead():
    records = run_ranks(recorded_far_ahead, 2, Topology.from_modules({"vision": {}, "language": {}}), 40)
    assert sum(isinstance(record, Post) for record in records[0]) > 80
    assert unfinished(records) == []


def recorded_programs(seeds):
    found = []
    for seed in seeds:
        with recorded() as records, mock.patch.dict(os.environ):
            run_programs([seed])
        found.append(records)
    return found


def test_backwards_in_any_order_receive_their_own_gradients():
    seeds = [seed for seed in range(150) if program_of(seed).is_regular]
    ranks = run_ranks(recorded_programs, 6, seeds, timeout_s=100)
    for at, seed in enumerate(seeds):
        world_size = program_of(seed).topology.world_size
        assert unfinished([own[at] for own in ranks[:world_size]]) == [], program_of(seed)
