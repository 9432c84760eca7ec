"""Advice as text and as JSON. Pure."""

import json
from collections.abc import Iterator
from typing import Any

from launcher.advise.advice import Advice
from launcher.advise.candidates import Layout
from launcher.advise.predictor import Prediction
from launcher.formatting import counted
from mimo_role import Topology

_MS = 1000
_AXES = ("tp", "pp", "dp")
_MISSES = 0.1
"""An error for the present layout from which on predictions are called rough."""

_FROM_REHEARSAL = "from times of a rehearsal"


def as_text(advice: Advice) -> str:
    """The present layout, whether another is faster, then the others with what each prediction rests on."""
    lines = [*_present(advice), ""]
    if advice.best and not advice.is_faster(advice.best[0]):
        lines += ["no other layout is predicted to be faster than the present one; for comparison, the best of the others:", ""]
    for prediction in advice.best:
        lines += _lines_of(advice, prediction)
    if not advice.best:
        lines.append("there is no other layout on as many ranks that the planner accepts; --pp and --tp-efficiency allow more")
    compared = f"compared: {counted(advice.compared, 'other layout')} of the run's ranks"
    if advice.multiple > 1:
        compared += f", with multiples of {advice.multiple} ranks for all modules but the last"
    return "\n".join([*lines, f"{compared}; basis of all predictions:", *(f"  {line}" for line in advice.basis)])


def as_json(advice: Advice) -> str:
    """The same for programs."""
    measured = advice.measured
    value = {
        "measured_ms": None if measured.step_s is None else round(measured.step_s * _MS, 3),
        "rehearsed": measured.is_rehearsed,
        "steps": measured.steps,
        "ranks_recorded": measured.ranks,
        "micro_batches": measured.shape.micro_batches,
        "present": {
            "modules": _modules(advice.present, measured.topology),
            "predicted_ms": round(advice.present_s * _MS, 3),
        },
        "correction": round(advice.correction, 4),
        "best": [_as_dict(prediction) | {"is_faster": advice.is_faster(prediction)} for prediction in advice.best],
        "compared": advice.compared,
        "multiple": advice.multiple,
        "basis": list(advice.basis),
    }
    return json.dumps(value)


def _present(advice: Advice) -> Iterator[str]:
    measured, predicted = advice.measured, f"predicted {_ms(advice.present_s * _MS)} ms per step"
    steps = f"{counted(measured.steps, 'step')}, {measured.shape.micro_batches} micro-batches each"
    ranks = f"{measured.ranks} of {counted(measured.topology.world_size, 'rank')}"
    if measured.step_s is None:
        yield f"present layout: {predicted}, {_FROM_REHEARSAL}; {steps}, {ranks} rehearsed"
        return
    error = advice.present_s / measured.step_s - 1
    yield (f"present layout: measured {_ms(measured.step_s * _MS)} ms, {predicted} ({error:+.1%}); {steps}, {ranks} recorded")
    if abs(error) > _MISSES:
        yield (
            "the model misses much of this run, such as delays of ranks that share cores: the order of the layouts below "
            "may be right, their times are rough"
        )


def _lines_of(advice: Advice, prediction: Prediction) -> Iterator[str]:
    changed = ", ".join(_changes(advice, prediction))
    how = f"predicted, {_FROM_REHEARSAL}" if advice.measured.is_rehearsed else "predicted"
    slower = "" if advice.is_faster(prediction) else ", slower" if prediction.step_s > advice.before_s else ", not faster"
    yield f"{changed}: step {_ms(advice.before_s * _MS)} -> {_ms(prediction.step_s * _MS)} ms{slower} ({how})"
    yield f"  {' '.join(_overrides(advice.present, prediction.layout))}"
    yield from (f"  {line}" for line in prediction.basis)
    yield ""


def _changes(advice: Advice, prediction: Prediction) -> Iterator[str]:
    """`vision 16 -> 6`, `language 48 -> 58 ranks`; where its ranks are as many, the axes: `language pp 2 -> 4`."""
    ranks, axes = [], []
    for name, sizes in prediction.layout.items():
        before, after = advice.measured.topology.grids[name], prediction.topology.grids[name]
        if before.size != after.size:
            ranks.append(f"{name} {before.size} -> {after.size}")
        old = advice.present[name]
        other = [f"{axis} {getattr(old, axis)} -> {getattr(sizes, axis)}" for axis in _AXES[:2] if _differ(old, sizes, axis)]
        if other:
            axes.append(f"{name} {', '.join(other)}")
    if ranks:
        yield f"{', '.join(ranks)} ranks"
    yield from axes


def _overrides(present: Layout, layout: Layout) -> Iterator[str]:
    """What a command line changes in the config to get a layout."""
    for name, sizes in layout.items():
        for axis in _AXES:
            if _differ(present[name], sizes, axis):
                yield f"modules.{name}.{axis}={getattr(sizes, axis)}"


def _differ(one: object, other: object, axis: str) -> bool:
    return bool(getattr(one, axis) != getattr(other, axis))


def _as_dict(prediction: Prediction) -> dict[str, Any]:
    return {
        "modules": _modules(prediction.layout, prediction.topology),
        "predicted_ms": round(prediction.step_s * _MS, 3),
        "basis": list(prediction.basis),
    }


def _modules(layout: Layout, topology: Topology) -> dict[str, dict[str, Any]]:
    return {
        name: {"ranks": topology.grids[name].size} | {axis: getattr(sizes, axis) for axis in _AXES}
        for name, sizes in layout.items()
    }


def _ms(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
