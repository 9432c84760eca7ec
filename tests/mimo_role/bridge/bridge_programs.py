"""Random programs of bridge calls, what one process computes for them, and what a rank of the job does."""

import math
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore
from torch.utils.checkpoint import checkpoint

import mimo_role
from mimo_role import ActivationSpec, BridgeError, Schedule1F1B, Topology, lane_samples
from mimo_role.bridge import departure
from mimo_role.host import environ

SAMPLES, WIDTH = 6, 2
LIMIT_S = 30.0
LEAVE_LIMIT_S = 60.0
"""How long a rank waits for its peers as it leaves: so long that no program takes it unless one of them waits for nothing."""


class Op(NamedTuple):
    """One line of a script."""

    verb: str
    """`forward`, `backward`, `drop`, `step` or `schedule`."""
    batch: int = 0
    how: str = ""
    """Of a forward: `no_grad` or `recompute`. Of a backward: `twice` or `rows` or `again`. Of a drop: `unused`."""


@dataclass(frozen=True)
class Program:
    """What each rank does, rank by rank."""

    seed: int
    topology: Topology
    scripts: tuple[tuple[Op, ...], ...]
    is_regular: bool
    """Whether no side or rank was changed by itself, so that the result must equal one process."""


def program_of(seed: int) -> Program:
    """A program; the same for the same seed."""
    draw = random.Random(seed)
    topology = Topology.from_modules(
        {"vision": {"dp": draw.choice([1, 1, 2, 3])}, "language": {"dp": draw.choice([1, 1, 2, 3])}}
    )
    count = draw.randint(1, 5)
    if draw.random() < 0.2:
        sides = {side: [Op("schedule", count)] * 2 for side in ("vision", "language")}
    else:
        sides = _sides(draw, count)
    scripts = [list(sides[topology.modules_of(rank)[0]]) for rank in range(topology.world_size)]
    is_regular = draw.random() < 0.4
    if not is_regular:
        _change(draw, scripts, topology)
    return Program(seed, topology, tuple(map(tuple, scripts)), is_regular)


def _sides(draw: random.Random, count: int) -> dict[str, list[Op]]:
    """Matching scripts of both sides: all forwards and then all backwards, or one batch after another."""
    no_grad = {batch for batch in range(count) if draw.random() < 0.15}
    unused = {batch for batch in range(count) if draw.random() < 0.15} - no_grad
    trained = [batch for batch in range(count) if batch not in no_grad]
    forwards = {
        side: {batch: Op("forward", batch, "no_grad" if batch in no_grad else "") for batch in range(count)}
        for side in ("vision", "language")
    }
    hows = {batch: draw.choice(["", "", "twice", "rows"]) for batch in range(count)}
    sides: dict[str, list[Op]] = {"vision": [], "language": []}
    if draw.random() < 0.5:
        orders = {side: draw.sample(trained, len(trained)) for side in sides}
        sides["vision"] = [*forwards["vision"].values(), *(Op("backward", batch) for batch in orders["vision"])]
        ends = [
            Op("drop", batch, "unused") if batch in unused else Op("backward", batch, hows[batch])
            for batch in orders["language"]
        ]
        sides["language"] = [*forwards["language"].values(), *ends]
    else:
        for batch in range(count):
            if draw.random() < 0.3:
                for script in sides.values():
                    script.append(Op("step", batch))
            sides["vision"].append(forwards["vision"][batch])
            sides["language"].append(forwards["language"][batch])
            if batch not in no_grad:
                sides["vision"].append(Op("backward", batch))
                if batch not in unused:
                    sides["language"].append(Op("backward", batch, hows[batch]))
    return sides


def _change(draw: random.Random, scripts: list[list[Op]], topology: Topology) -> None:
    """Change one rank's script, or those of all ranks of one side."""
    module = draw.choice(["vision", "language"])
    ranks = list(topology.grids[module].ranks)
    changed = list(scripts[ranks[0]])
    at = draw.randrange(len(changed))
    op = changed[at]
    kind = draw.choice(["skip", "repeat", "swap", "no_grad", "recompute", "step", "again"])
    if op.verb == "schedule":
        others = {"skip": [], "recompute": [Op("forward")], "again": [op, op]}
        changed[at : at + 1] = others.get(kind, [Op("schedule", max(1, op.batch + draw.choice([-1, 1, 2])))])
    elif kind == "skip":
        del changed[at]
    elif kind == "repeat":
        changed.insert(at, op)
    elif kind == "swap":
        other = draw.randrange(len(changed))
        changed[at], changed[other] = changed[other], changed[at]
    elif kind in ("no_grad", "recompute") and op.verb == "forward":
        changed[at] = op._replace(how=kind)
    elif kind == "step":
        changed.insert(at, Op("step", 100))
    else:
        changed.append(Op("backward", draw.randrange(5), "again"))
    # If lanes are paired, a pair is independent of the others, whose numbers stay correct.
    lanes = [grid.axis_size("dp") for grid in topology.grids.values()]
    for rank in ranks if draw.random() < 0.5 or math.gcd(*lanes) > 1 else [draw.choice(ranks)]:
        scripts[rank] = changed


def inputs_of(batch: int, samples: range) -> torch.Tensor:
    """The encoder's input of a batch: small whole numbers, so that sums are exact in any order. `[samples, WIDTH]`"""
    return torch.tensor([[batch * 7 + sample + 1.0, sample - batch] for sample in samples], dtype=torch.float64).view(-1, WIDTH)


def encoded(inputs: torch.Tensor) -> torch.Tensor:
    """The encoder."""
    return inputs * 2 + 1


def losses_of(batch: int, how: str, rows: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """The losses whose backwards run one after another."""
    if how == "twice":
        return [(rows * weight).sum(), (batch + 2) * rows.square().sum()]
    if how == "rows":
        return [(row * weight).square().sum() for row in rows]
    return [(rows * weight).square().sum() * (batch + 1)]


class Rank:
    """Runs one script, and records every number."""

    def __init__(self) -> None:
        self.ctx = ctx = mimo_role.current()
        self.bridge = ctx.bridge("vision")
        end = self.bridge.source if self.bridge.is_sender else self.bridge.destination
        place = end.place_of(ctx.rank)
        self.mine = lane_samples(SAMPLES, end.lanes, place.lane)
        self.count = 0
        self.held: dict[int, torch.Tensor] = {}
        self.crossed: dict[int, torch.Tensor] = {}
        self.weight = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
        self.numbers: list[tuple[str, int, object]] = []

    def run(self, script: tuple[Op, ...]) -> None:
        for op in script:
            getattr(self, op.verb)(op)
        if self.bridge.is_receiver:
            self.numbers.append(("weight", 0, None if self.weight.grad is None else self.weight.grad.tolist()))

    def forward(self, op: Op) -> None:
        batch, self.count = self.count, self.count + 1  # batches have numbers by their order, whatever the script calls them
        spec = ActivationSpec.of(SAMPLES, (WIDTH,), torch.float64)
        with torch.no_grad() if op.how == "no_grad" else nullcontext():
            if self.bridge.is_sender:
                self.held[batch] = inputs_of(batch, self.mine).requires_grad_()
                call = lambda: self.bridge(encoded(self.held[batch]), spec=spec)  # noqa: E731
            else:
                call = lambda: self.bridge(spec=spec)  # noqa: E731
            if op.how == "recompute":
                self.crossed[batch] = checkpoint(lambda _: call() * self.weight.sum(), self.weight, use_reentrant=False)
            else:
                self.crossed[batch] = call()
        if self.bridge.is_receiver and op.how != "recompute":
            self.numbers.append(("rows", batch, self.crossed[batch].tolist()))

    def backward(self, op: Op) -> None:
        crossed = self.crossed.get(op.batch)
        if crossed is None or not crossed.requires_grad:
            return
        if self.bridge.is_sender:
            crossed.sum().backward(retain_graph=True)
            self.numbers.append(("gradient", op.batch, self.held[op.batch].grad.tolist()))
            return
        for loss in losses_of(op.batch, op.how, crossed, self.weight):
            loss.backward(retain_graph=True)

    def drop(self, op: Op) -> None:
        self.crossed.pop(op.batch, None)

    def step(self, op: Op) -> None:
        self.ctx.step(op.batch)

    def schedule(self, op: Op) -> None:
        self.inputs = []
        self.scheduled.step(list(range(op.batch)))
        self.numbers += [("gradient", batch, inputs.grad.tolist()) for batch, inputs in enumerate(self.inputs)]

    @cached_property
    def scheduled(self) -> Schedule1F1B:
        spec = ActivationSpec.of(SAMPLES, (WIDTH,), torch.float64)

        def run(module: str, batch: int, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            if module == "vision":
                self.inputs.append(inputs_of(batch, self.mine).requires_grad_())
                return encoded(self.inputs[-1])
            self.numbers.append(("rows", batch, inputs["vision"].tolist()))
            return inputs["vision"]

        def loss_of(rows: torch.Tensor, batch: int) -> torch.Tensor:
            return losses_of(batch, "", rows, self.weight)[0]

        return Schedule1F1B(self.ctx, run=run, spec_of=lambda *_: spec, loss_of=loss_of)


def run_programs(seeds: Sequence[int]) -> list[tuple[list[tuple[str, int, object]], str, float]]:
    """On one rank of a world that is large enough: every program that has the rank; numbers, error and seconds."""
    departure._TIMEOUT_S = LEAVE_LIMIT_S
    rank, world = environ.rank(), environ.world_size()
    store = dist.TCPStore("127.0.0.1", int(environ.get("MASTER_PORT")), timeout=timedelta(seconds=120))
    found = []
    for seed in seeds:
        program = program_of(seed)
        if program.topology.world_size > world or rank >= program.topology.world_size:
            found.append(([], "no such rank", 0.0))
            continue
        found.append(_run(program, rank, PrefixStore(f"program {seed}", store)))
    return found


def _run(program: Program, rank: int, store: dist.Store) -> tuple[list[tuple[str, int, object]], str, float]:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=program.topology.world_size)
    began, runner, error = time.monotonic(), None, ""
    try:
        mimo_role.init(program.topology, timeout_s=LIMIT_S)
        runner = Rank()
        runner.run(program.scripts[rank])
        runner.crossed.clear()
    except BridgeError as problem:
        error = str(problem)
    try:
        mimo_role.shutdown()
    except BridgeError as problem:
        error = error or str(problem)
    seconds = time.monotonic() - began
    dist.destroy_process_group()
    return (runner.numbers if runner else []), error, seconds


def oracle(program: Program) -> list[list[tuple[str, int, object]]] | None:
    """The numbers that each rank must record, computed by one process with all samples; `None` for an invalid program."""
    places = [_place(program, rank) for rank in range(program.topology.world_size)]
    ranks = list(zip(places, program.scripts, strict=True))
    scheduled = [tuple(op for op in script if op.verb == "schedule") for script in program.scripts]
    if any(scheduled):
        if len(set(scheduled)) > 1:
            return None
        return _scheduled(places, scheduled[0])
    calls = [[op.how for op in script if op.verb == "forward"] for _, script in ranks]
    if any([how == "no_grad" for how in own] != [how == "no_grad" for how in calls[0]] for own in calls):
        return None
    inputs = [inputs_of(batch, range(SAMPLES)).requires_grad_() for batch in range(len(calls[0]))]
    rows = [encoded(held) for held in inputs]
    numbers = [[] for _ in ranks]
    for (module, samples), script, own in zip(places, program.scripts, numbers, strict=True):
        if module == "vision":
            continue
        weight = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True)
        hows = [op.how for op in script if op.verb == "forward"]
        own += [
            ("rows", batch, rows[batch][samples.start : samples.stop].tolist())
            for batch, how in enumerate(hows)
            if how != "recompute"
        ]
        for op in _backwards(script):
            if hows[op.batch] != "no_grad":
                for loss in losses_of(op.batch, op.how, rows[op.batch][samples.start : samples.stop], weight):
                    loss.backward(retain_graph=True)
        own.append(("weight", 0, None if weight.grad is None else weight.grad.tolist()))
    for (module, samples), script, own in zip(places, program.scripts, numbers, strict=True):
        for op in _backwards(script) if module == "vision" else ():
            if calls[0][op.batch] != "no_grad":
                gradient = inputs[op.batch].grad
                gradient = torch.zeros(SAMPLES, WIDTH) if gradient is None else gradient
                own.append(("gradient", op.batch, gradient[samples.start : samples.stop].tolist()))
    return numbers


def _backwards(script: tuple[Op, ...]) -> Iterator[Op]:
    """The backwards of batches whose forwards have run."""
    forwards, dropped = 0, set()
    for op in script:
        forwards += op.verb == "forward"
        if op.verb == "drop":
            dropped.add(op.batch)
        if op.verb == "backward" and op.batch < forwards and op.batch not in dropped:
            yield op


def _place(program: Program, rank: int) -> tuple[str, range]:
    """A rank's module, and its samples."""
    (module,) = program.topology.modules_of(rank)
    lanes = program.topology.grids[module].axis_size("dp")
    return module, lane_samples(SAMPLES, lanes, program.topology.coords_of(rank)[module]["dp"])


def _scheduled(places: list[tuple[str, range]], steps: tuple[Op, ...]) -> list[list[tuple[str, int, object]]]:
    numbers = []
    for module, samples in places:
        weight, own = torch.tensor([3.0, 5.0], dtype=torch.float64, requires_grad=True), []
        for batch in (batch for op in steps for batch in range(op.batch)):
            inputs = inputs_of(batch, range(SAMPLES)).requires_grad_()
            rows = encoded(inputs)
            losses_of(batch, "", rows, torch.tensor([3.0, 5.0], dtype=torch.float64))[0].backward()
            part = rows.detach()[samples.start : samples.stop]
            losses_of(batch, "", part, weight)[0].backward()
            if module == "language":
                own.append(("rows", batch, part.tolist()))
            else:
                own.append(("gradient", batch, inputs.grad[samples.start : samples.stop].tolist()))
        if module == "language":
            own.append(("weight", 0, weight.grad.tolist()))
        numbers.append(own)
    return numbers
