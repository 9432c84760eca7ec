"""One step of a run over all its ranks: a line of `metrics.jsonl` in the run directory."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, kw_only=True)
class ModuleStep:
    """One module in one step. Seconds are means over its ranks."""

    compute_s: float
    """Forwards and backwards, without waits for collectives within them where these are recorded; 0 without a schedule."""
    collectives_s: float = 0.0
    bridge_wait_s: float = 0.0
    """Waits for other modules."""
    bubble_s: float = 0.0
    """Waits for other stages of the same module."""
    samples: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """One step. A step that a later attempt has repeated has several lines, of which the last one counts."""

    step: int
    attempt: int
    time: float
    """When the step ended: seconds since the epoch."""
    seconds: float | None
    """From the step's beginning to the next one's, a median over ranks; of the last one, to its last span, or `None`."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """By name, a mean over the ranks that recorded it, of `memory/peak_gib` the largest; without those that are not finite."""
    modules: Mapping[str, ModuleStep] = field(default_factory=dict)
    """Those with a schedule, or of which ranks record samples or tokens."""

    def to_json(self) -> str:
        """One line, without its end."""
        return json.dumps(asdict(self), allow_nan=False)


def read_metrics(lines: Iterable[str]) -> list[StepMetrics]:
    """The steps of a file, by number, each as it was written last. Lines that are damaged are left out."""
    found: dict[int, StepMetrics] = {}
    for line in lines:
        try:
            values = json.loads(line)
            modules = {name: ModuleStep(**each) for name, each in values.pop("modules").items()}
            step = StepMetrics(**values, modules=modules)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        found[step.step] = step
    return [found[number] for number in sorted(found)]
