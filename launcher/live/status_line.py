"""A live view in one line: below the output of `mimo-launch run`, in `status`, and in `top` where it cannot redraw."""

from collections.abc import Iterator
from dataclasses import dataclass

from launcher.formatting import counted, printable
from launcher.live.quantities import duration, rate, scalar, share
from launcher.live.view import LiveView, ModuleView

SEPARATOR = " | "
LANGUAGE = "language"
"""The module that every job has, whose tokens are the job's."""


@dataclass(frozen=True)
class _Part:
    text: str
    rank: int
    """Which parts are left out first in a narrow terminal: those with the largest rank."""


def status_line(view: LiveView, width: int | None = None) -> str:
    """`step 412 of 2,000 | 3.1 steps/s | 12.4k tokens/s | loss 2.31 | compute 71 % | bridge 12 % | ETA 8 min`.

    Args:
        view: the run.
        width: columns. The least important parts are left out, and what remains is cut; `None`: all parts.
    """
    parts = [*_parts(view)]
    if width is not None:
        while len(parts) > 1 and len(_joined(parts)) > width:
            parts.remove(max(parts, key=lambda part: part.rank))
    return _joined(parts)[:width]


def describe_step(view: LiveView) -> str:
    """`step 412 of 2,000`."""
    if view.step is None:
        return f"no step yet ({view.recording:,} of {counted(view.world_size, 'rank')} recorded something)"
    return f"step {view.step:,}" + (f" of {view.total_steps:,}" if view.total_steps is not None else "")


def _joined(parts: list[_Part]) -> str:
    return SEPARATOR.join(part.text for part in parts)


def _parts(view: LiveView) -> Iterator[_Part]:
    yield _Part(describe_step(view), 0)
    if view.attempt:
        yield _Part(f"attempt {view.attempt}", 5)
    if view.step_s:
        yield _Part(f"{rate(1 / view.step_s)} steps/s", 3)
    if (tokens := _tokens_per_s(view)) is not None:
        yield _Part(f"{rate(tokens)} tokens/s", 4)
    if (loss := main_scalar(view)) is not None:
        yield _Part(f"{printable(loss)} {scalar(view.scalars[loss])}", 1)
    for name, rank in (("compute", 7), ("collectives", 9), ("bridge_wait", 6), ("bubble", 8)):
        # What is not even measured in most jobs is left out where there is none.
        if (part := _mean_share(view, name)) is not None and (part >= 0.005 or name == "compute"):
            yield _Part(f"{name.removesuffix('_wait')} {share(part)}", rank)
    if view.stragglers:
        yield _Part(counted(len(view.stragglers), "straggler"), 2)
    if view.eta_s is not None:
        yield _Part(f"ETA {duration(view.eta_s)}", 2)


def main_scalar(view: LiveView) -> str | None:
    """The name of the scalar that is shown where there is room for one: `loss`, else one that has it in its name."""
    if "loss" in view.scalars:
        return "loss"
    return next((name for name in view.scalars if "loss" in name.lower()), None)


def _tokens_per_s(view: LiveView) -> float | None:
    """Of the language model, else of the first module that records its tokens: other modules' are others."""
    modules = sorted(view.modules.items(), key=lambda item: item[0] != LANGUAGE)
    return next((module.tokens_per_s for _, module in modules if module.tokens_per_s is not None), None)


def _mean_share(view: LiveView, name: str) -> float | None:
    """The mean over the ranks of all modules that have a schedule."""
    known = [(_share_of(module, name), module.ranks) for module in view.modules.values() if module.compute is not None]
    ranks = sum(count for _, count in known)
    return sum(part * count for part, count in known) / ranks if ranks else None


def _share_of(module: ModuleView, name: str) -> float:
    value: float | None = getattr(module, name)
    return value or 0.0
