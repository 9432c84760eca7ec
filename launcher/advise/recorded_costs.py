"""What recorded steps show of the costs of stages and messages, by the median over the steps. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from launcher.advise.rank_step import LINK, SECONDS, Message, RankStep, Run, Wait
from launcher.advise.simulator import StageCost, StepShape
from mimo_role.pipeline.timeline import Phase
from mimo_role.topology.stage_links import StageId

Steps = Sequence[Mapping[int, RankStep]]
"""By step and rank."""
Sent = Sequence[Mapping[Message, int]]
"""By step, when each message was handed over, in ns."""

_REDUCES_IN_BACKWARD = 1.1
"""A last backward that takes so many times the others is taken to reduce gradients."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What it takes to hand over a micro-batch, in seconds, by the modules of sender and receiver and the direction."""

    sends: Mapping[tuple[str, Phase], float]
    """By the module that sends: within its forwards or backwards."""
    messages: Mapping[tuple[str, str, Phase], float | None]
    """By both modules: until the message is there; `None` where no receiver waited for it."""


def sent_in(steps: Steps) -> Sent:
    """When the messages of each step were handed over."""
    return [{message: at_ns for rank in step.values() for message, at_ns in rank.sent_ns.items()} for step in steps]


def stage_costs(steps: Steps, shape: StepShape, sent: Sent) -> dict[StageId, StageCost]:
    """Of each stage, what its slowest rank takes: its lanes work on each micro-batch together.

    Args:
        steps: of one form.
        shape: that form.
        sent: when messages were handed over, for waits that were for the sender; without it, all waits are overhead.
    """
    overheads = _overheads(steps, sent)
    of_ranks: defaultdict[StageId, list[StageCost]] = defaultdict(list)
    for rank, found in steps[0].items():
        for at in dict.fromkeys(run.at for run in found.runs):
            own = [[run for run in step[rank].runs if run.at == at] for step in steps]
            of_ranks[at].append(_rank_cost(own, overheads[rank], trains=shape.backward and at not in shape.frozen))
    return {
        at: StageCost(
            forward_s=max(cost.forward_s for cost in costs),
            backward_s=max(cost.backward_s for cost in costs),
            last_backward_s=max(cost.last_backward_s for cost in costs),
            overhead_s=fmean(cost.overhead_s for cost in costs),
        )
        for at, costs in of_ranks.items()
    }


def _rank_cost(steps: Sequence[Sequence[Run]], overhead_s: float, *, trains: bool) -> StageCost:
    """What one rank takes for its runs of a stage, which are given by step."""
    forwards, backwards = (
        [[run.compute_s for run in runs if run.phase is phase] for runs in steps] for phase in (Phase.FORWARD, Phase.BACKWARD)
    )
    backward_s, last_backward_s = _backward_costs(backwards) if trains else (0.0, 0.0)
    return StageCost(
        forward_s=median(map(fmean, forwards)),
        backward_s=backward_s,
        last_backward_s=last_backward_s,
        overhead_s=overhead_s,
    )


def _backward_costs(steps: Sequence[Sequence[float]]) -> tuple[float, float]:
    """What a backward takes, and the last of a step."""
    each, last = median(fmean(times[:-1] or times) for times in steps), median(times[-1] for times in steps)
    if last > _REDUCES_IN_BACKWARD * each:
        return each, last
    each = median(map(fmean, steps))
    return each, each


def _overheads(steps: Steps, sent: Sent) -> dict[int, float]:
    """By rank: the time per action between its spans, and of waits for what was there already."""
    found: dict[int, float] = {}
    for rank in steps[0]:
        of_steps = []
        for step, sent_in_step in zip(steps, sent, strict=True):
            had = [wait for wait in step[rank].waits if _late_ns(wait, sent_in_step) is None]
            waits_s = sum(wait.end_ns - wait.begin_ns for wait in had) * SECONDS
            of_steps.append((step[rank].gap_s + waits_s) / len(step[rank].runs))
        found[rank] = median(of_steps)
    return found


def traffic_of(steps: Steps, sent: Sent) -> Traffic:
    """What sends and messages took; `sent` as for `stage_costs`."""
    sends: defaultdict[tuple[str, Phase], list[float]] = defaultdict(list)
    messages: defaultdict[tuple[str, str, Phase], list[float]] = defaultdict(list)
    for step, sent_in_step in zip(steps, sent, strict=True):
        for rank in step.values():
            for run in rank.runs:
                if run.send_s:
                    sends[run.at.module, run.phase].append(run.send_s)
            for wait in rank.waits:
                key = *_modules_of(wait.link), wait.phase
                late_ns = _late_ns(wait, sent_in_step)
                messages[key] += [] if late_ns is None else [late_ns * SECONDS]
    return Traffic(
        sends={key: median(times) for key, times in sends.items()},
        messages={key: median(times) if times else None for key, times in messages.items()},
    )


def _late_ns(wait: Wait, sent: Mapping[Message, int]) -> int | None:
    """How long after it was sent something came that a rank waited for; `None` if it was sent before the wait, or unknown."""
    times = [sent.get(Message(wait.link, wait.phase, wait.micro_batch, sender)) for sender in wait.senders]
    known = [at_ns for at_ns in times if at_ns is not None]
    if len(known) < len(times) or max(known) <= wait.begin_ns:
        return None
    return max(wait.end_ns - max(known), 0)


def _modules_of(link: str) -> tuple[str, str]:
    match = LINK.fullmatch(link)
    return (match["source"], match["target"]) if match is not None else (link, link)
