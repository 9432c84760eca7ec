"""Time per step of examples/digits_vlm on this machine's cores: with the schedule, and without.

Without, all micro-batches go forward and then all go back, each stage waiting for the one before (autograd through the same
bridges); that is what the example did at first. Real ranks over gloo, one thread each; in each world both take turns, from the
same weights. Cases:

- `LAYOUT, batch B, N micro-batches`: ms per step; here the peer has as many micro-batches. `..., against one whole batch`:
  the peer has one, which for it alone is the fastest where nothing overlaps.
- `..., waiting, LABEL`: the share of the step that a rank waits at bridges.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from report import Row, parser, show

from mimo_role import Topology

EXAMPLE = str(Path(__file__).parents[1] / "examples" / "digits_vlm")

LAYOUTS: dict[str, dict[str, Any]] = {
    "vision, language": {"vision": {}, "language": {}},
    "vision dp2, language dp2": {"vision": {"dp": 2}, "language": {"dp": 2}},
    "vision dp2, language pp2": {"vision": {"dp": 2}, "language": {"pp": 2}},
}
BATCHES = [(256, 4), (256, 8), (32, 4)]


def measure(size: int, micro_batches: int, runs: int) -> dict[str, Any]:
    """On one rank: ms per step and the share of it spent waiting, of each side in every run."""
    import torch
    import torch.distributed as dist

    sys.path.insert(0, EXAMPLE)
    from data import Digits
    from forward import ForwardPath
    from parallel import build_modules, make_optimizer
    from steps import Steps

    import mimo_role
    from mimo_role import RoleDataLoader
    from mimo_role.bridge.batch_ledger import BatchLedger

    ctx = mimo_role.current()
    names = ctx.topology.modality_module_names
    digits = Digits(names, torch.float32)
    modules = build_modules(ctx, names, 0, torch.float32)
    optimizer = make_optimizer(modules, 1e-3, 0.01)
    steps, path = Steps(ctx, modules, optimizer), ForwardPath(ctx, modules)
    waited = 0.0

    def timed(original: Callable[[BatchLedger, Any], None]) -> Callable[[BatchLedger, Any], None]:
        def wait(ledger: BatchLedger, awaited: Any) -> None:
            nonlocal waited
            started = time.perf_counter()
            original(ledger, awaited)
            if threading.current_thread() is threading.main_thread():  # another waits for sends beside the step
                waited += time.perf_counter() - started

        return wait

    def epoch(parts: int) -> Any:
        sampler = digits.training_sampler(batch_size=size, micro_batches=parts, seed=0)
        return RoleDataLoader(ctx, digits.training, sampler)

    def without(batch: Any) -> None:
        optimizer.zero_grad()
        path.count_predictions(batch)
        losses = one_after_another(ctx, path, batch)
        ctx.sum_gradients(modules)
        optimizer.step()
        ctx.mean_loss(losses)

    sides = {"ours": (steps.train, micro_batches), "peer": (without, micro_batches), "whole": (without, 1)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    shares: dict[str, list[float]] = {side: [] for side in sides}
    # The schedule waits for data, autograd for the headers before it.
    waits = {name: timed(getattr(BatchLedger, name)) for name in ("wait_for", "wait_for_data")}
    with mock.patch.multiple(BatchLedger, **waits):
        for _ in range(runs):
            for side, (step, parts) in sides.items():
                batch = next(iter(epoch(parts)))
                step(batch)
                dist.barrier()
                waited, started = 0.0, time.perf_counter()
                for _ in range(5):
                    step(batch)
                dist.barrier()
                seconds = time.perf_counter() - started
                times[side].append(1000 * seconds / 5)
                shares[side].append(waited / seconds)
    return {"ms": times, "waiting": shares}


def one_after_another(ctx: Any, path: Any, batches: list[Any]) -> list[Any]:
    """All micro-batches forward, then all back; every rank waits for what it needs next. The losses, where there are any."""
    from mimo_role.pipeline.stage_graph import StageGraph

    graph = StageGraph(ctx.topology)
    losses, roots = [], []
    for batch in batches:
        for at in graph.of_rank(ctx.rank):
            inputs = {before.module: bridge_from(ctx, before)(spec=path.spec_of(before, batch)) for before in graph.before[at]}
            output = path.run(at.module, batch, inputs)
            if graph.after[at]:
                roots.append(bridge_from(ctx, at)(output, spec=path.spec_of(at, batch)))
            else:
                losses.append(path.loss_of(output, batch))
    for root in roots + losses:
        root.backward()
    return [loss.detach() for loss in losses]  # their graphs would keep gradients from being sent


def bridge_from(ctx: Any, at: Any) -> Any:
    is_last = at.stage == ctx.topology.grids[at.module].axis_size("pp") - 1
    return ctx.bridge(at.module, stage=None if is_last else at.stage)


def rows_of(layout: str, size: int, micro_batches: int, runs: int) -> Iterator[Row]:
    from mimo_role.testing import run_ranks

    topology = Topology.from_modules(LAYOUTS[layout])
    found = run_ranks(measure, topology, size, micro_batches, runs, timeout_s=300)
    case = f"{layout}, batch {size}, {micro_batches} micro-batches"
    ours, peer, whole = (median(found[0]["ms"][side]) for side in ("ours", "peer", "whole"))
    yield Row(case, ours, peer, ours / peer, runs)
    yield Row(f"{case}, against one whole batch", ours, whole, ours / whole, runs)
    for rank, of_rank in enumerate(found):
        mine, theirs = (median(of_rank["waiting"][side]) for side in ("ours", "peer"))
        yield Row(f"{case}, waiting, {topology.label_of(rank)}", mine, theirs, mine / theirs, runs)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=7, help="alternating runs of each case (default: 7)")
    arguments = options.parse_args()
    rows = []
    for layout in LAYOUTS:
        for size, micro_batches in BATCHES:
            for row in rows_of(layout, size, micro_batches, arguments.runs):
                print(f"{row.case}: {row.ours:.2f} against {row.peer:.2f}, ratio {row.ratio:.2f}", file=sys.stderr)
                rows.append(row)
    show("schedule", rows, arguments.json)


if __name__ == "__main__":
    main()
