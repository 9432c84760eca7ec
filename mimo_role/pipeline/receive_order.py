"""When the receives of a step are posted. Pure arithmetic."""

from bisect import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import Action, Phase
from mimo_role.topology.stage_links import StageId

ACTIONS_AHEAD = 2
"""On the CPU, the number of further actions whose inputs are received while one action runs."""


class Receive(NamedTuple):
    """What one action gets from one other."""

    receiver: Action
    sender: Action


def receives_ahead(receives: Mapping[Action, Sequence[Receive]], own: Sequence[Action], ahead: int) -> list[list[Receive]]:
    """For each of a rank's actions, the receives to post before it: those of the actions up to `ahead` positions later."""
    found: list[list[Receive]] = [[] for _ in own]
    for position, action in enumerate(own):
        found[max(position - ahead, 0)] += receives[action]
    return found


def receives_when_sent(
    receives: Mapping[Action, Sequence[Receive]], own: Sequence[Action], actions: Sequence[Action]
) -> list[list[Receive]]:
    """For each of a rank's actions, the receives to post before it, so that no rank has to be able to compute meanwhile.

    An NCCL receive is a kernel that runs until the message has come, and a send one that runs until it is received. While they
    run, the host may be blocked by what waits for the whole device: the first use of a kernel, which CUDA loads then, or
    `cudaFree`. If an action may only begin when all that its rank has posted is complete, actions can still be executed one
    after the other, in the order of `actions`: what an action sends has to be received before the next action of the sender,
    and what is received must not be sent after the next action of the receiver. So a receive is posted after the last action
    of its rank that comes before the sender's in this order.

    Args:
        receives: those of each action of the rank.
        own: the rank's actions, in their order.
        actions: those of all ranks.
    """
    index = {action: number for number, action in enumerate(actions)}
    own_indices = [index[action] for action in own]
    found: list[list[Receive]] = [[] for _ in own]
    for action in own:
        for receive in receives[action]:
            found[bisect(own_indices, index[receive.sender])].append(receive)
    return found


def receives_of(
    action: Action,
    graph: StageGraph,
    own_stages: Collection[StageId],
    trained: Collection[StageId],
    per_run: Mapping[StageId, int],
) -> Iterator[Receive]:
    """What an action gets from other ranks; not what the rank sends to itself as well.

    Args:
        action: one of the rank's.
        graph: the stages of all modules.
        own_stages: the rank's.
        trained: stages that have backwards.
        per_run: micro-batches that a stage runs at once.
    """
    senders = graph.before[action.at] if action.phase is Phase.FORWARD else graph.after[action.at]
    first = action.number * per_run[action.at]
    for sender in senders:
        if sender in own_stages or (action.phase is Phase.BACKWARD and sender not in trained):
            continue
        size = per_run[sender]
        for number in range(first // size, (first + per_run[action.at] - 1) // size + 1):
            yield Receive(action, Action(action.phase, sender, number))
