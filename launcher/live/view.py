"""A run at one moment, by module: what `mimo-launch top` shows, and the file in the run directory that it reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.errors import LaunchError
from launcher.stragglers.straggler import Straggler

FORMAT = 1
STORE_KEY = "live"
"""Where node 0 has the view in its store, as JSON text."""


@dataclass(frozen=True, kw_only=True)
class SlowestRank:
    """The rank of a module that computes longest in a step."""

    rank: int
    label: str
    """Its role, as `language.pp1.tp0`."""
    node: str
    """The name of its node, and the host's where that is another."""
    compute_s: float
    """Seconds of computation per step, a median over the last steps."""


@dataclass(frozen=True, kw_only=True)
class ModuleView:
    """One module over its ranks, in the last steps.

    Shares are parts of the time of a step, means over ranks. What they leave of 1 is the rest of the step, such as data loading
    and the optimizer.
    """

    ranks: int
    steps_per_s: float | None = None
    samples_per_s: float | None = None
    """`None` where no rank records `samples`."""
    tokens_per_s: float | None = None
    """`None` where no rank records `tokens`."""
    compute: float | None = None
    """The share of forwards and backwards, without what follows; `None` where the script has no schedule, as for the others."""
    collectives: float | None = None
    """The share of waits for collectives within them, where they are recorded."""
    bridge_wait: float | None = None
    """The share of waits for other modules."""
    bubble: float | None = None
    """The share of waits for other stages of the same module."""
    peak_gib: float | None = None
    """The most memory that a rank has used, GiB."""
    slowest: SlowestRank | None = None


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """A run at one moment."""

    run: str
    attempt: int
    time: float
    """When it was written: seconds since the epoch."""
    began: float
    """When the attempt began: seconds since the epoch."""
    interval_s: float
    """Seconds until the next one."""
    world_size: int
    recording: int
    """How many ranks have recorded something."""
    step: int | None = None
    """The last step that all of these ranks have ended; `None` before the first."""
    total_steps: int | None = None
    """`None` where the script gives no number."""
    step_s: float | None = None
    """Seconds of a step, a median over the last steps."""
    eta_s: float | None = None
    """Seconds until the last step; `None` where `total_steps` or `step_s` is."""
    scalars: Mapping[str, float] = field(default_factory=dict)
    """The last value by name, a mean over the ranks that recorded it."""
    modules: Mapping[str, ModuleView] = field(default_factory=dict)
    stragglers: tuple[Straggler, ...] = ()
    """Those of this moment."""
    is_last: bool = False
    """Whether the ranks of the attempt have ended: no further one is written of it."""

    def to_json(self) -> str:
        """The JSON form, one line."""
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str) -> "LiveView":
        """The inverse of `to_json`.

        Raises:
            LaunchError: the text is of another version, or damaged.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise LaunchError("written by another version of mimo-launch")
            modules = {name: _module_from(each) for name, each in values.pop("modules").items()}
            stragglers = tuple(Straggler(**each) for each in values.pop("stragglers"))
            return cls(**values, modules=modules, stragglers=stragglers)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LaunchError(f"no view of a run: {type(error).__name__}: {error}") from None


def _module_from(values: dict[str, Any]) -> ModuleView:
    slowest = values.pop("slowest")
    return ModuleView(**values, slowest=SlowestRank(**slowest) if slowest is not None else None)
