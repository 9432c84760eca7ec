"""What the time of a run's steps went to, by module. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.steps.metrics import StepMetrics

PARTS = {
    "compute_s": "compute",
    "collectives_s": "waits for collectives",
    "bridge_wait_s": "waits for other modules",
    "bubble_s": "waits for other stages",
}
"""Fields of `ModuleStep`, and what they are called on the page."""


@dataclass(frozen=True)
class ModuleShares:
    """One module: parts of the time of all steps, means over its ranks."""

    module: str
    parts: dict[str, float]
    """By field of `ModuleStep`; together at most 1."""

    @property
    def rest(self) -> float:
        """What is left, such as data loading and the optimizer."""
        return max(0.0, 1.0 - sum(self.parts.values()))


def shares_of(steps: Sequence[StepMetrics]) -> list[ModuleShares]:
    """The shares of each module with a schedule, over all steps of known duration. Parts that overlap are scaled to 1."""
    found = []
    for module in dict.fromkeys(name for each in steps for name in each.modules):
        own = [each for each in steps if module in each.modules and each.seconds is not None]
        total_s = sum(each.seconds or 0.0 for each in own)
        spent_s = {name: sum(getattr(each.modules[module], name) for each in own) for name in PARTS}
        if total_s > 0 and any(spent_s.values()):
            parts = {name: seconds / total_s for name, seconds in spent_s.items()}
            scale = max(1.0, sum(parts.values()))
            found.append(ModuleShares(module, {name: part / scale for name, part in parts.items()}))
    return found
