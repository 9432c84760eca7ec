"""What a prediction rests on, in words. Pure."""

from collections.abc import Iterator

from launcher.advise.cost_model import LATENCY_S, Assumptions, ModuleScale, message_time
from launcher.advise.measured import Measured
from launcher.formatting import counted
from mimo_role import Topology
from mimo_role.pipeline.stage_graph import StageGraph
from mimo_role.pipeline.timeline import SLACK, Phase

_MS = 1000


def basis_of_run(measured: Measured, assumptions: Assumptions, correction: float) -> list[str]:
    """What all predictions from one run have in common: what was measured, and what is assumed.

    Args:
        measured: the run.
        assumptions: of the user.
        correction: what all predictions are multiplied by.
    """
    lines = [*_rehearsal(measured), *_stages(measured), *_traffic(measured), _rest(measured)]
    if assumptions.samples is None:
        lines.append("samples of a micro-batch: not given (--samples), so lanes are taken to divide them evenly")
    if not measured.is_rehearsed:
        lines.append(f"all predictions are multiplied by {correction:.3f}: measured / predicted of the present layout")
    lines.append("the time of a stage is taken to be proportional to the samples of a lane")
    if measured.shape.slack != SLACK:
        lines.append(f"the order of the run is that of slack={measured.shape.slack}")
    if not measured.is_known_order:
        lines.append("the run's order of forwards and backwards is not that of the schedule; it is taken to be")
    lines.append("memory is not modeled")
    return lines


def basis_of(measured: Measured, topology: Topology, graph: StageGraph, assumptions: Assumptions) -> list[str]:
    """What the prediction of one layout rests on, by module, where the layout differs from the run's.

    Args:
        measured: the run.
        topology: the layout.
        graph: its stages.
        assumptions: of the user.
    """
    found = {module: list(_of_module(measured, module, topology, assumptions)) for module in topology.grids}
    lines = [f"{module}: {'; '.join(parts)}" for module, parts in found.items() if parts]
    return lines + _messages_of_others(measured, graph)


def _rehearsal(measured: Measured) -> Iterator[str]:
    if measured.is_rehearsed:
        yield (
            "all times are those of a rehearsal on a CPU, with peers that have what each rank has; waits for peers are not in "
            "them, and messages between stages are taken to take no time"
        )
        yield (
            f"{counted(measured.ranks, 'rank')} of {measured.topology.world_size:,} {'was' if measured.ranks == 1 else 'were'} "
            "rehearsed, each for all ranks of its kind; on a GPU the times of the modules may have another ratio"
        )


def _stages(measured: Measured) -> Iterator[str]:
    for at, cost in measured.stages.items():
        backward = f", backward {_ms(cost.backward_s)}" if cost.backward_s else ", no backward"
        last = f" (the last of a step {_ms(cost.last_backward_s)})" if cost.last_backward_s > cost.backward_s else ""
        yield f"{at}: forward {_ms(cost.forward_s)}{backward}{last} per run, of its slowest rank, {_how(measured)}"


def _traffic(measured: Measured) -> Iterator[str]:
    if measured.is_rehearsed:
        return
    for (source, target, phase), time_s in measured.traffic.messages.items():
        what = "activations" if phase is Phase.FORWARD else "gradients"
        link = f"{source} -> {target}" if source != target else f"stages of {source}"
        if time_s is None:
            yield f"{what}, {link}: no rank waited for them, so they are taken to take no time"
        else:
            scaled = f"; what is above {_ms(LATENCY_S)} scales with the samples of a lane" if time_s > LATENCY_S else ""
            yield f"{what}, {link}: {_ms(time_s)} measured until they are there{scaled}"


def _rest(measured: Measured) -> str:
    how = f"{_how(measured)} (data, sums, optimizer), taken as unchanged"
    if measured.meets:
        return f"between the schedule and the next step: {_ms(next(iter(measured.rests.values())))} {how}"
    each = ", ".join(f"{module} {_ms(rest)}" for module, rest in measured.rests.items())
    why = "no collective of all ranks in each step, so they are taken not to" if measured.is_rehearsed else "ranks did not"
    return f"{why} wait for each other between steps; there: {each} {how}"


def _how(measured: Measured) -> str:
    return "rehearsed" if measured.is_rehearsed else "measured"


def _of_module(measured: Measured, module: str, topology: Topology, assumptions: Assumptions) -> Iterator[str]:
    before, after = measured.topology.grids[module], topology.grids[module]
    scale = ModuleScale.of(module, before, after, assumptions)
    if scale.samples != 1:
        how = "at most ceil(samples / lanes)" if assumptions.samples is not None else "divided evenly"
        yield f"{_how(measured)} times x {scale.samples:.3g}, its share of the samples of a lane ({how})"
    if scale.tp != 1:
        given = assumptions.tp_efficiency[module]
        yield f"x {scale.tp:.3g} for tp {before.axis_size('tp')} -> {after.axis_size('tp')} at the given efficiency {given:g}"
    if scale.shares is not None:
        was = counted(before.axis_size("pp"), f"{_how(measured)} stage")
        yield f"{was} added up; {_divided(len(scale.shares), assumptions.layers.get(module))}"
    if scale.samples > 1:
        yield "needs more memory for activations than the run"


def _divided(stages: int, layers: int | None) -> str:
    if stages == 1:
        return "1 stage has the whole module" if layers is None else f"1 stage has all {layers} layers"
    return f"{stages} stages divide {'the module evenly' if layers is None else f'{layers} layers'}"


def _messages_of_others(measured: Measured, graph: StageGraph) -> list[str]:
    """The modules between whose stages nothing was sent in the run, so that the time of other messages is taken."""
    if measured.is_rehearsed:
        return []
    links = [link for link in graph.links if message_time(measured, link, Phase.FORWARD)[1]]
    modules = dict.fromkeys(link.source.module for link in links)
    return [f"messages between stages of {module}: as the slowest of the others, none was measured" for module in modules]


def _ms(seconds: float) -> str:
    return f"{seconds * _MS:.3g} ms" if seconds < 0.1 else f"{seconds * _MS:.0f} ms"
