"""The last steps of an attempt, by module."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from launcher.live.view import ModuleView, SlowestRank
from launcher.steps.job_steps import JobStep
from launcher.steps.metrics import StepMetrics
from launcher.steps.rank_step import PEAK_GIB
from mimo_role import Topology

_STEPS = 20


class RecentSteps:
    """What `mimo-launch top` shows of them."""

    def __init__(self, topology: Topology, places: Mapping[int, str]) -> None:
        """`places` has the node of each rank."""
        self._topology = topology
        self._places = places
        self._steps: deque[StepMetrics] = deque(maxlen=_STEPS)
        self._compute_s: dict[str, dict[int, deque[float]]] = {name: {} for name in topology.grids}
        """By module and rank."""
        self._peak_gib: dict[int, float] = {}
        """By rank."""
        self.scalars: dict[str, float] = {}
        """The last value by name, but for what modules have."""
        self.total_steps: int | None = None

    def add(self, found: JobStep, metrics: StepMetrics) -> None:
        """Take a complete step."""
        self._steps.append(metrics)
        self.scalars |= {name: value for name, value in metrics.scalars.items() if name != PEAK_GIB}
        last = max(each.last_step for each in found.ranks.values())
        self.total_steps = last or self.total_steps
        for rank, each in found.ranks.items():
            for name, times in each.modules.items():
                self._compute_s[name].setdefault(rank, deque(maxlen=_STEPS)).append(times.compute_s)
            if PEAK_GIB in each.scalars:
                self._peak_gib[rank] = max(each.scalars[PEAK_GIB], self._peak_gib.get(rank, 0.0))

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, a median; `None` where none is known."""
        seconds = [each.seconds for each in self._steps if each.seconds is not None]
        return median(seconds) if seconds else None

    def modules(self) -> dict[str, ModuleView]:
        """Every module of the job."""
        return {name: self._module(name) for name in self._topology.grids}

    def _module(self, name: str) -> ModuleView:
        ranks = self._topology.grids[name].ranks
        found = [
            (each.seconds, each.modules[name]) for each in self._steps if name in each.modules and each.seconds is not None
        ]
        seconds = sum(each for each, _ in found)
        has_times = bool(self._compute_s[name]) and seconds > 0

        def share(of_step: str) -> float | None:
            return sum(getattr(each, of_step) for _, each in found) / seconds if has_times else None

        return ModuleView(
            ranks=len(ranks),
            steps_per_s=1 / self.step_s if self.step_s else None,
            samples_per_s=_rate([(each, module.samples) for each, module in found]),
            tokens_per_s=_rate([(each, module.tokens) for each, module in found]),
            compute=share("compute_s"),
            collectives=share("collectives_s"),
            bridge_wait=share("bridge_wait_s"),
            bubble=share("bubble_s"),
            peak_gib=max((self._peak_gib[rank] for rank in ranks if rank in self._peak_gib), default=None),
            slowest=self._slowest(name),
        )

    def _slowest(self, name: str) -> SlowestRank | None:
        found = {rank: median(each) for rank, each in self._compute_s[name].items()}
        if not found:
            return None
        rank = max(found, key=lambda each: found[each])
        return SlowestRank(
            rank=rank, label=self._topology.label_of(rank), node=self._places[rank], compute_s=round(found[rank], 6)
        )


def _rate(found: list[tuple[float, float | None]]) -> float | None:
    """By second, over the steps that have a number; `None` where it is not finite."""
    counted = [(seconds, number) for seconds, number in found if number is not None]
    seconds = sum(each for each, _ in counted)
    rate = sum(number for _, number in counted) / seconds if seconds > 0 else math.inf
    return rate if math.isfinite(rate) else None
