"""Which other layouts of a run would be faster: all are bounded, and the best are played. Pure."""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from launcher.advise.basis import basis_of_run
from launcher.advise.candidates import Axes, Layout, candidates, sizes_of
from launcher.advise.cost_model import Assumptions
from launcher.advise.measured import Measured
from launcher.advise.predictor import Prediction, Predictor
from launcher.errors import LaunchError
from mimo_role import MimoError, ModuleLayout, Topology

_TP_DOUBLINGS = 3
"""How often tp is doubled or halved where its efficiency is given."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asks for."""

    top: int = 5
    """Layouts to show."""
    pp: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By module, the sizes of pp to compare. Default: the run's, doubled as often as there are micro-batches for it."""
    assumptions: Assumptions = field(default_factory=Assumptions)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The predictions from one run."""

    measured: Measured
    present: Layout
    """The layout that ran."""
    present_s: float
    """Its step as the model has it, without a correction."""
    correction: float
    """What all predictions are multiplied by: its measured step, divided by `present_s`; 1 of a rehearsal."""
    best: Sequence[Prediction]
    """Of others, the fastest first."""
    compared: int
    """Layouts that were compared."""
    multiple: int
    """All modules but the last have a multiple of so many ranks in them."""
    basis: Sequence[str]
    """What all predictions rest on."""

    @property
    def before_s(self) -> float:
        """What predictions are compared with: the measured step; of a rehearsal the predicted one."""
        return self.present_s if self.measured.step_s is None else self.measured.step_s

    def is_faster(self, prediction: Prediction) -> bool:
        """Whether a layout is predicted to be faster than the present one."""
        return prediction.step_s < self.before_s


Accepts = Callable[[Topology], Sequence[str]]
"""Remarks on a layout; raises `MimoError` where it cannot be planned."""


def advise(measured: Measured, request: Request, accepts: Accepts) -> Advice:
    """Predict the step of other layouts on the same number of ranks.

    Args:
        measured: the run.
        request: which layouts, how many of them, and what is known beside the recordings.
        accepts: whether a layout fits the nodes.

    Raises:
        LaunchError: the request names modules that the run does not have, or sizes that it cannot have.
    """
    _check(measured, request)
    present, predictor = sizes_of(measured.topology), Predictor(measured, request.assumptions)
    is_colocated = measured.topology.layout is ModuleLayout.COLOCATED
    allowed = {name: list(_axes(measured, request, name)) for name in present}
    found = candidates(present, measured.topology.world_size, allowed, colocated=is_colocated)
    others = [layout for layout in found.layouts if _differs(layout, present)]
    return Advice(
        measured=measured,
        present=present,
        present_s=predictor.present_s,
        correction=predictor.correction,
        best=_fastest(predictor, others, request.top, accepts),
        compared=len(others),
        multiple=found.multiple,
        basis=basis_of_run(measured, request.assumptions, predictor.correction),
    )


def _check(measured: Measured, request: Request) -> None:
    """
    Raises:
        LaunchError: an unknown module, or numbers of stages that it cannot have.
    """
    given = {
        "--pp": request.pp,
        "--layers": request.assumptions.layers,
        "--tp-efficiency": request.assumptions.tp_efficiency,
    }
    for option, by_module in given.items():
        for module in by_module:
            if module not in measured.topology.grids:
                raise LaunchError(f"{option} {module}: no such module; there are {', '.join(measured.topology.grids)}")
    for module, stages in request.pp.items():
        layers = request.assumptions.layers.get(module, max(stages))
        if max(stages) > layers:
            raise LaunchError(f"--pp {module}={max(stages)}: by --layers it has {layers} layers, and as many stages at most")
        if _has_fixed_stages(measured, module):
            raise LaunchError(
                f"--pp {module}: some of its stages have roles of their own in the run (they are frozen, or get another "
                "module's output), so nothing is known of other numbers of stages"
            )


def _has_fixed_stages(measured: Measured, module: str) -> bool:
    """Whether stages of a module differ in more than their times: some are frozen, or get what the first one does not."""
    are_frozen = {at in measured.shape.frozen for at in measured.stages if at.module == module}
    return len(are_frozen) > 1 or any(at.module == module for stages in measured.destinations.values() for at in stages)


def _axes(measured: Measured, request: Request, module: str) -> Iterator[Axes]:
    """The sizes that a module may have beside dp.

    Those that are not asked for by `--pp` put no more weights on a rank than the run did, which had memory for them.
    """
    grid, layers = measured.topology.grids[module], request.assumptions.layers.get(module)
    tp, pp = grid.axis_size("tp"), grid.axis_size("pp")
    runs = measured.shape.micro_batches // measured.shape.per_run.get(module, 1)
    sizes = [tp]
    if module in request.assumptions.tp_efficiency:
        sizes = [tp * 2**power for power in range(_TP_DOUBLINGS + 1)]
        sizes += [tp // 2**power for power in range(1, _TP_DOUBLINGS + 1) if tp % 2**power == 0]
    stages = list(request.pp.get(module, ()))
    if not stages:
        most = pp if _has_fixed_stages(measured, module) else max(min(runs, layers or runs), pp)
        stages = [pp * 2**power for power in range(most.bit_length()) if pp * 2**power <= most]
    for own_tp in sizes:
        for own_pp in stages:
            if (module in request.pp or own_tp * own_pp >= tp * pp) and (layers is None or own_pp <= layers):
                yield Axes(own_tp, own_pp)


def _differs(layout: Layout, present: Layout) -> bool:
    return any(replace(sizes, order=None) != replace(present[name], order=None) for name, sizes in layout.items())


def _fastest(predictor: Predictor, layouts: Sequence[Layout], top: int, accepts: Accepts) -> list[Prediction]:
    """Play layouts by their lower bounds, until none that is left can be among the fastest."""
    bounds = []
    for number, layout in enumerate(layouts):
        try:
            topology = Topology.from_modules(layout, layout=predictor.measured.topology.layout)
        except MimoError:
            continue
        bounds.append((predictor.least(topology), number, topology))
    heapq.heapify(bounds)
    found: list[tuple[float, int, Prediction]] = []
    while bounds and (len(found) < top or bounds[0][0] < found[top - 1][0]):
        _, number, topology = heapq.heappop(bounds)
        try:
            remarks = accepts(topology)
        except MimoError:
            continue
        prediction = predictor.predict(layouts[number], topology)
        prediction = replace(prediction, basis=[*prediction.basis, *remarks])
        found.append((prediction.step_s, number, prediction))
        found.sort(key=lambda each: each[:2])
    return [prediction for _, _, prediction in found[:top]]
