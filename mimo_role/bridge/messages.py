"""Messages of data: the parts that ranks send each other over process groups."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist

from mimo_role.bridge.batch_ledger import BatchLedger
from mimo_role.bridge.frames import BatchKey
from mimo_role.bridge.message_tags import tag_of
from mimo_role.bridge.transfer_guard import Posted


class Step(Enum):
    """The step of a transfer to which a message belongs."""

    SEND = "send"
    RECEIVE = "receive"
    REPLICA_SEND = "replica send"
    """To another replica of this rank's lane, what came over the bridge."""
    REPLICA_RECEIVE = "replica receive"

    def __init__(self, name: str) -> None:
        # Attributes, since they are read for each message.
        self.is_send = name.endswith("send")
        """Whether this rank is the sender."""
        self.is_among_replicas = name.startswith("replica")
        """Whether both ranks are on the receiving side."""

    # Steps are keys for each message; Enum's own would hash the name, in Python.
    __hash__ = object.__hash__


class Channels(NamedTuple):
    """The process groups that transfer a bridge's messages, in the order of `Purpose`; `None` for the world's."""

    forward: dist.ProcessGroup | None = None
    back: dist.ProcessGroup | None = None
    forward_among_replicas: dist.ProcessGroup | None = None
    """For what the replicas of a receiving lane exchange."""
    back_among_replicas: dist.ProcessGroup | None = None


class MessageOwner(Protocol):
    """A transfer, as its messages see it."""

    def describe_messages(self, step: Step, peers: Iterable[int]) -> str:
        """Messages to or from some peers, for errors."""

    def add_posted(self, step: Step, posted: Posted) -> None:
        """A message has been posted."""


class Message(NamedTuple):
    """One part that a rank sends or receives."""

    owner: MessageOwner
    step: Step
    tensor: torch.Tensor
    peer: int
    group: dist.ProcessGroup | None
    tag: int

    @classmethod
    def of(
        cls, owner: MessageOwner, step: Step, tensor: torch.Tensor, peer: int, *, key: BatchKey, channels: Channels
    ) -> "Message":
        """A message of the batch `key`, by its tag and over its group."""
        return cls(owner, step, tensor, peer, channels[key.purpose], tag_of(key.bridge, key.purpose, key.batch, tensor))


def is_one_operation(tensor: torch.Tensor) -> bool:
    """Whether a batch of messages of such tensors is one operation, as with NCCL: it completes when all have arrived."""
    return tensor.device.type != "cpu"


def post(messages: Sequence[Message], ledger: BatchLedger) -> None:
    """Post messages; those that use the same group in one batched call, where a batch is one operation.

    Raises:
        BridgeError: a message could not be posted.
    """
    for together in _by_group(messages):
        try:
            works = _post_batch(together) if is_one_operation(together[0].tensor) else list(map(_post_one, together))
        except RuntimeError as error:
            texts = dict.fromkeys(message.owner.describe_messages(message.step, [message.peer]) for message in together)
            raise ledger.fail_transfer(f"one of these could not begin: {'; '.join(texts)}: {error}") from error
        for work, message in zip(works, together, strict=True):
            posted = Posted(work, message.tensor, message.peer, message.tag, message.step.is_send)
            message.owner.add_posted(message.step, posted)


def _by_group(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    if not messages:
        return []
    if not is_one_operation(messages[0].tensor):
        return [messages]
    groups: dict[dist.ProcessGroup | None, list[Message]] = defaultdict(list)
    for message in messages:
        groups[message.group].append(message)
    return groups.values()


def _post_one(message: Message) -> dist.Work:
    """As `dist.isend` or `dist.irecv`, whose checks take a few percent of the time of a small message."""
    if message.group is None:
        group, peer = dist.group.WORLD, message.peer
    else:
        group, peer = message.group, dist.get_group_rank(message.group, message.peer)
    assert group is not None, "the world is joined"
    post_to = group.send if message.step.is_send else group.recv
    return post_to([message.tensor], peer, message.tag)


def _post_batch(messages: Sequence[Message]) -> list[dist.Work]:
    operations = [
        dist.P2POp(dist.isend if message.step.is_send else dist.irecv, message.tensor, message.peer, message.group, message.tag)
        for message in messages
    ]
    works = dist.batch_isend_irecv(operations)
    return works * len(messages) if len(works) != len(messages) else works  # NCCL makes one of a batch
