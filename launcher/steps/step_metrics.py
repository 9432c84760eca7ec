"""From a step of all ranks to a line of metrics.jsonl. Pure."""

import math
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from statistics import fmean, median

from launcher.steps.job_steps import JobStep
from launcher.steps.metrics import ModuleStep, StepMetrics
from launcher.steps.rank_step import PEAK_GIB, SAMPLES, TOKENS, ModuleTimes, RankStep
from launcher.steps.roles import is_first_of_lane, stage_of
from mimo_role import Topology


def metrics_of(topology: Topology, attempt: int, found: JobStep) -> StepMetrics:
    """What is written of a step."""
    ranks = found.ranks.values()
    seconds = [each.seconds for each in ranks if each.seconds > 0]
    return StepMetrics(
        step=found.step,
        attempt=attempt,
        time=median(each.ended for each in ranks),
        seconds=median(seconds) if seconds else None,
        scalars=_over_ranks(each.scalars for each in ranks),
        modules=_modules(topology, found.ranks),
    )


def total(topology: Topology, module: str, ranks: Mapping[int, RankStep], name: str) -> float | None:
    """What the ranks of one stage of a module have recorded as `samples` or `tokens`, each lane counted once.

    It is the first stage of which ranks have recorded it; `None` if there is none, and if the sum is not finite.
    """
    by_stage: dict[int, float] = {}
    for rank in _counted(topology, module):
        if rank in ranks and (value := ranks[rank].scalars.get(name)) is not None:
            stage = stage_of(topology, module, rank)
            by_stage[stage] = by_stage.get(stage, 0.0) + value
    found = by_stage[min(by_stage)] if by_stage else math.inf
    return found if math.isfinite(found) else None


@lru_cache(maxsize=64)
def _counted(topology: Topology, module: str) -> Collection[int]:
    return tuple(rank for rank in topology.grids[module].ranks if is_first_of_lane(topology, module, rank))


def _over_ranks(scalars: Iterable[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for of_rank in scalars:
        for name, value in of_rank.items():
            if name not in (SAMPLES, TOKENS):
                values.setdefault(name, []).append(value)
    over_ranks = {name: max(found) if name == PEAK_GIB else _mean(found) for name, found in values.items()}
    return {name: value for name, value in over_ranks.items() if math.isfinite(value)}


def _mean(values: list[float]) -> float:
    try:
        return fmean(values)
    except OverflowError:  # their sum has no float
        return fmean(each / len(values) for each in values) * len(values)


def _modules(topology: Topology, ranks: Mapping[int, RankStep]) -> dict[str, ModuleStep]:
    times: dict[str, list[ModuleTimes]] = {name: [] for name in topology.grids}
    for each in ranks.values():
        for name, of_module in each.modules.items():
            times[name].append(of_module)
    found = {name: _module(topology, name, of_module, ranks) for name, of_module in times.items()}
    return {name: each for name, each in found.items() if times[name] or each.samples is not None or each.tokens is not None}


def _module(topology: Topology, name: str, times: list[ModuleTimes], ranks: Mapping[int, RankStep]) -> ModuleStep:
    means = ModuleTimes(*(fmean(column) for column in zip(*times, strict=True)))
    return ModuleStep(
        **means._asdict(),
        samples=total(topology, name, ranks, SAMPLES),
        tokens=total(topology, name, ranks, TOKENS),
    )
