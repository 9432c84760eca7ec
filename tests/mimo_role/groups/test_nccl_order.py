"""What NCCL would make of the schedule's messages: each communicator takes its batches one after the other, without tags.

A step runs over gloo, with NCCL's groups, while every rank notes what it posts and waits for; then the notes are played by
NCCL's rules. A batch is one operation of its communicator: it begins when those before it have ended, and ends when each of
its messages has met its counterpart in a batch that has begun. Between two ranks, messages meet in the order of their posting.
What a rank posts after a wait is not there before that wait is over.
"""

from collections import defaultdict
from typing import NamedTuple
from unittest import mock

import pytest
import torch.distributed as dist

import mimo_role
from mimo_role import Topology
from mimo_role.bridge import nccl_channels, transfer
from mimo_role.pipeline.schedule import Schedule1F1B
from mimo_role.resharding import transfer_plan
from mimo_role.testing import run_ranks
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


class Noted:
    """A message's work as NCCL gives it: that of its whole batch."""

    def __init__(self, notes, number, work):
        self.notes, self.number, self.work = notes, number, work

    def wait(self):
        self.notes.append(Wait(self.number))
        self.work.wait()


def noted_step(topology, batches, slack):
    """Run a step; return this rank's notes."""
    notes, original = [], dist.batch_isend_irecv
    transfer_plan.WORTH_SHARING = 0  # copies hand on even the little that is sent here; this process ends with the test

    def batch(operations):
        works = original(operations)
        (communicator,) = {operation.group.group_name for operation in operations}
        messages = [Message(operation.op is dist.isend, operation.peer, operation.tag) for operation in operations]
        notes.append(Post(len(notes), communicator, messages))
        return [Noted(notes, notes[-1].number, work) for work in works]

    with (
        mock.patch.object(nccl_channels, "uses_nccl", return_value=True),
        mock.patch.object(transfer, "is_one_operation", return_value=True),
        mock.patch("torch.distributed.batch_isend_irecv", batch),
        mock.patch.object(Schedule1F1B, "_actions_ahead", return_value=1),
    ):
        mimo_role.init(topology, backend="gloo", timeout_s=50)
        connected = len(notes)
        step(batches, (), slack)
    assert len(notes) > connected, "the step posts batches"
    return notes


def unfinished(notes):
    """Play the notes; return which ranks never come to their end."""
    queues = defaultdict(list)
    done, at = set(), [0] * len(notes)
    moved = True
    while moved:
        moved = False
        for rank, own in enumerate(notes):
            while at[rank] < len(own) and not (isinstance(own[at[rank]], Wait) and (rank, own[at[rank]].number) not in done):
                note = own[at[rank]]
                if isinstance(note, Post):
                    queues[rank, note.communicator].append((note.number, list(note.messages)))
                at[rank] += 1
                moved = True
        for (rank, communicator), queue in list(queues.items()):
            for peer in {message.peer for message in begun(queue) if message.is_send}:
                sent = [message for message in begun(queue) if message.is_send and message.peer == peer]
                theirs = begun(queues[peer, communicator])
                awaited = [message for message in theirs if not message.is_send and message.peer == rank]
                for given, taken in zip(sent, awaited, strict=False):
                    assert given.tag == taken.tag, f"rank {peer} would take one message of rank {rank} for another"
                    begun(queue).remove(given)
                    theirs.remove(taken)
                    moved = True
        for (rank, _), queue in queues.items():
            while queue and not queue[0][1]:
                done.add((rank, queue.pop(0)[0]))
                moved = True
    return [rank for rank, own in enumerate(notes) if at[rank] < len(own)]


def begun(queue):
    """The messages of a communicator's first batch that have not met theirs yet."""
    return queue[0][1] if queue else []


def test_the_rules_find_two_ranks_that_both_send_first():
    def sends_to(rank):
        return Message(True, rank, 7), Message(False, rank, 7)

    one_by_one = [[Post(number, "world", [message]) for number, message in enumerate(sends_to(1 - rank))] for rank in (0, 1)]
    together = [[Post(0, "world", list(sends_to(1 - rank)))] for rank in (0, 1)]
    assert unfinished([[*posts, Wait(1)] for posts in one_by_one]) == [0, 1]
    assert unfinished([[*posts, Wait(0)] for posts in together]) == []


@pytest.mark.parametrize("slack", [0, 1, 2])
@pytest.mark.parametrize(("modules", "layout"), LAYOUTS)
def test_no_rank_waits_for_ever_under_nccls_rules(modules, layout, slack):
    topology = Topology.from_modules(modules, layout=layout)
    notes = run_ranks(noted_step, topology.world_size, topology, in_parts(*[4] * 9), slack)
    assert all(any(isinstance(note, Wait) for note in own) for own in notes)
    assert unfinished(notes) == []
