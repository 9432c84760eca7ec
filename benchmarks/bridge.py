"""One micro-batch over a bridge and its gradients back, against megatron-core's BridgeCommunicator.

Real ranks over gloo on this machine; in each world both sides take turns, and so does a bare `batch_isend_irecv` of the very
messages that ours sends, into memory that is there already. The peer's device and backend, which it fixes to CUDA and NCCL,
are replaced. Cases (float32, `[8 samples, tokens, 1024]`, MiB of the whole micro-batch in one direction):

- `dp M:N tp T, S MiB`: ms for forward and backward. `sequence-parallel`: the destination keeps slices; the peer cannot.
- `..., MiB between the grids` and `..., MiB on the busiest link`: what crosses, there and back.
- `..., host synchronisations`: how often the busiest rank reads a tensor's value on the host in a micro-batch.
- `..., against bare`: ms; here the peer is the bare `batch_isend_irecv`.
- `route`: ms to find one rank's part of 8,192 samples of random lengths, from 1,024 encoder lanes to 1,152 language lanes of
  tp 8; here the peer is the 5 ms that it may take.
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from statistics import median
from typing import Any
from unittest import mock

from report import Row, parser, show

import mimo_role
from mimo_role import Samples, Topology

SAMPLES, HIDDEN = 8, 1024
SHAPES = [(m, n, tp) for m, n in ((1, 1), (2, 1), (1, 2)) for tp in (1, 2, 4)]
MIB = [0.25, 1, 16, 64]
SEQUENCE_PARALLEL = (1, 1, 4)
LIMIT_S = 300


class MicroBatch:
    """One micro-batch there and back, by bridges of a version of mimo_role, as one rank sees it.

    `activations` and `gradients` are what crosses, of which a sequence-parallel destination returns slices.
    """

    def __init__(self, package: Any, shape: tuple[int, int, int], mib: float, sequence_parallel: bool) -> None:
        import torch

        self.topology = topology = topology_of(*shape, package)
        self.ctx = package.init(topology, backend="gloo", timeout_s=LIMIT_S)
        self.bridge = self.ctx.bridge("vision", destination=package.TokenSplit(sequence_parallel=sequence_parallel))
        tokens = int(mib * 2**20) // (4 * HIDDEN * SAMPLES)
        self.spec = package.ActivationSpec.of(SAMPLES, (tokens, HIDDEN), torch.float32)
        self.activations = torch.randn(SAMPLES // topology.grids["vision"].axis_size("dp"), tokens, HIDDEN)
        lanes, tp = (topology.grids["language"].axis_size(axis) for axis in ("dp", "tp"))
        self.gradients = torch.randn(SAMPLES // lanes, tokens, HIDDEN)
        self._kept = self.gradients[:, : tokens // tp].contiguous() if sequence_parallel else self.gradients
        self._start_together = start_together_of(package)

    def step(self) -> None:
        bridge, spec = self.bridge, self.spec
        if bridge.is_sender:
            sent, back = bridge.send_forward(self.activations, spec), bridge.recv_backward(spec)
            self._start_together([sent, back])
            back.wait()
            sent.wait()
        else:
            bridge.recv_forward(spec).wait()
            bridge.send_backward(self._kept, spec).wait()

    def autograd_step(self) -> None:
        """The same by calls of the bridge as a function."""
        if self.bridge.is_sender:
            self.bridge(self.activations.detach().requires_grad_(), spec=self.spec).backward()
        else:
            self.bridge(spec=self.spec).backward(self._kept)


def start_together_of(package: Any) -> Callable[[list[Any]], None]:
    """What posts several transfers in one batch, wherever that version has it."""
    try:
        return import_module(f"{package.__name__}.bridge.transfer").start_together
    except ModuleNotFoundError:
        return import_module(f"{package.__name__}.crossing").start_together


def topology_of(m: int, n: int, tp: int, package: Any = mimo_role) -> Any:
    return package.Topology.from_modules({"vision": {"tp": tp, "dp": m}, "language": {"tp": tp, "dp": n}})


def measure(shape: tuple[int, int, int], mib: float, sequence_parallel: bool, runs: int) -> dict[str, Any]:
    """On one rank: ms per micro-batch of each side in every run, and what the rank sent and read in one."""
    import torch.distributed as dist

    ours = MicroBatch(mimo_role, shape, mib, sequence_parallel)
    peer = communicator(ours.topology)

    def theirs() -> None:
        if ours.bridge.is_sender:
            peer.send_forward(ours.activations)
            peer.recv_backward()
        else:
            peer.recv_forward()
            peer.send_backward(ours.gradients)

    sides = {"ours": ours.step, "peer": theirs, "bare": bare(ours.bridge, ours.spec)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    repeats = 40 if mib < 4 else 4
    for _ in range(runs):
        for side, step in sides.items():
            step()
            dist.barrier()
            started = time.perf_counter()
            for _ in range(repeats):
                step()
            dist.barrier()
            times[side].append(1000 * (time.perf_counter() - started) / repeats)
    watched = {side: watch(side, sides[side], ours.topology, ours.ctx.rank) for side in ("ours", "peer")}
    return {"ms": times, "watched": watched}


def communicator(topology: Topology) -> Any:
    """The peer, made to run on a CPU over gloo."""
    import torch
    import torch.distributed as dist
    from megatron.core.hyper_comm_grid import HyperCommGrid
    from megatron.core.pipeline_parallel.bridge_communicator import BridgeCommunicator

    original = dist.new_subgroups_by_enumeration
    mock.patch("torch.distributed.new_subgroups_by_enumeration", lambda ranks, **_: original(ranks)).start()
    mock.patch("torch.cuda.current_device", return_value="cpu").start()
    grids = [HyperCommGrid(list(grid.shape), list(grid.dim_names), grid.rank_offset) for grid in topology.grids.values()]
    return BridgeCommunicator(*grids, comm_dtype=torch.float32)


def bare(bridge: Any, spec: Any) -> Callable[[], None]:
    """The same messages and nothing else, there and back."""
    import torch
    import torch.distributed as dist

    from mimo_role.resharding.endpoint import Side
    from mimo_role.resharding.transfer_plan import plan_transfers

    sides = Side(bridge.source, spec.samples, True), Side(bridge.destination, spec.samples, False)
    memory: dict[Any, torch.Tensor] = {}
    rounds = []
    for way in (sides, sides[::-1]):
        plan = plan_transfers(dist.get_rank(), *way, spec.width)
        for sends, receives in ((plan.sends, plan.receives), (plan.replica_sends, plan.replica_receives)):
            operations = []
            for verb, transfers in ((dist.isend, sends), (dist.irecv, receives)):
                for number, transfer in enumerate(transfers):
                    place = (len(rounds), verb, number)
                    memory[place] = torch.ones(transfer.stop - transfer.start)
                    operations.append(dist.P2POp(verb, memory[place], transfer.peer))
            rounds.append(operations)

    def step() -> None:
        for operations in rounds:
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()

    return step


def watch(side: str, step: Callable[[], None], topology: Topology, rank: int) -> dict[str, Any]:
    """What a micro-batch of one side sends to the other grid, in bytes by receiver, and how often it reads values there."""
    import torch
    import torch.distributed as dist

    sent: dict[int, int] = defaultdict(int)
    reads = 0
    single, batched, blocking = dist.ProcessGroup.send, dist.batch_isend_irecv, dist.send
    vision = topology.grids["vision"]

    def note(tensor: torch.Tensor, peer: int) -> None:
        if (rank in vision) != (peer in vision):
            sent[peer] += tensor.numel() * tensor.element_size()

    def group_send(group: dist.ProcessGroup, tensors: list[torch.Tensor], dst: int, tag: int) -> Any:
        note(tensors[0], dst)
        return single(group, tensors, dst, tag)

    def batch(operations: list[dist.P2POp]) -> Any:
        for operation in operations:
            if operation.op is dist.isend:
                note(operation.tensor, operation.peer)
        return batched(operations)

    def send(tensor: torch.Tensor, dst: int, **settings: Any) -> Any:
        note(tensor, dst)
        return blocking(tensor, dst, **settings)

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*arguments: Any) -> Any:
            nonlocal reads
            reads += 1
            return original(*arguments)

        return read

    with ExitStack() as stack:
        if side == "ours":
            stack.enter_context(mock.patch.object(dist.ProcessGroup, "send", group_send))
        else:
            for name, patched in {"batch_isend_irecv": batch, "send": send}.items():
                stack.enter_context(mock.patch(f"torch.distributed.{name}", patched))
        for name in ("item", "tolist", "cpu"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, counted(getattr(torch.Tensor, name))))
        step()
    dist.barrier()
    return {"sent": dict(sent), "reads": reads}


def name_of(m: int, n: int, tp: int, sequence_parallel: bool) -> str:
    return f"dp {m}:{n} tp {tp}{' sequence-parallel' if sequence_parallel else ''}"


def chosen_cases(options: argparse.ArgumentParser, only: str) -> list[tuple[int, int, int, bool]]:
    """The cases that `--only` has chosen; m, n, tp and whether they are sequence-parallel."""
    cases = [*((*shape, False) for shape in SHAPES), (*SEQUENCE_PARALLEL, True)]
    chosen = [case for case in cases if only in name_of(*case)]
    if not chosen:
        options.error(f"--only: no case has '{only}' in its name; the cases: {', '.join(name_of(*case) for case in cases)}")
    return chosen


def rows_of(m: int, n: int, tp: int, mib: float, sequence_parallel: bool, runs: int) -> Iterator[Row]:
    from mimo_role.testing import run_ranks

    preload = ["megatron.core.pipeline_parallel.bridge_communicator"]
    arguments = (measure, (m + n) * tp, (m, n, tp), mib, sequence_parallel, runs)
    found = run_ranks(*arguments, timeout_s=LIMIT_S, preload=preload)
    case = f"{name_of(m, n, tp, sequence_parallel)}, {mib:g} MiB"
    ours, peer, least = (median(found[0]["ms"][side]) for side in ("ours", "peer", "bare"))
    yield Row(case, ours, peer, ours / peer, runs)
    for what, scale, of in (
        ("MiB between the grids", 2**20, lambda watched: sum(sum(rank["sent"].values()) for rank in watched)),
        ("MiB on the busiest link", 2**20, lambda watched: max(max(rank["sent"].values(), default=0) for rank in watched)),
        ("host synchronisations", 1, lambda watched: max(rank["reads"] for rank in watched)),
    ):
        mine, theirs = (of([rank["watched"][side] for rank in found]) / scale for side in ("ours", "peer"))
        yield Row(f"{case}, {what}", mine, theirs, mine / theirs, 1)
    yield Row(f"{case}, against bare", ours, least, ours / least, runs)


def routing_row(runs: int) -> Row:
    from mimo_role.resharding.endpoint import Endpoint, Side
    from mimo_role.resharding.transfer_plan import plan_transfers

    topology = Topology.from_modules({"vision": {"tp": 8, "dp": 1024}, "language": {"tp": 8, "dp": 1152}})
    generator = random.Random(0)
    ends = [Endpoint(name, grid, 0) for name, grid in topology.grids.items()]
    found = []
    for _ in range(runs):
        for assigned in (False, True):
            for rank in (generator.randrange(8192), generator.randrange(8192, topology.world_size)):
                tokens = [generator.randint(0, 4096) for _ in range(8192)]
                lanes = [[generator.randrange(end.lanes) for _ in range(8192)] if assigned else None for end in ends]
                started = time.perf_counter()
                samples = Samples(8192, tokens, *lanes)
                plan_transfers(rank, Side(ends[0], samples, True), Side(ends[1], samples, False), 4096)
                found.append(1000 * (time.perf_counter() - started))
    print(f"one rank's route: {median(found):.2f} ms, at most {max(found):.2f} ms", file=sys.stderr)
    return Row("route, 8192 samples, 1024 to 1152 lanes of tp 8", max(found), 5.0, max(found) / 5, runs)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--mib", type=float, nargs="+", default=MIB, help="sizes of a micro-batch")
    options.add_argument("--only", default="", help="cases whose name has this in it, such as 'tp 4'")
    options.add_argument("--runs", type=int, default=5, help="alternating runs of each case (default: 5)")
    arguments = options.parse_args()
    cases = chosen_cases(options, arguments.only)
    rows = [routing_row(arguments.runs)]
    for m, n, tp, sequence_parallel in cases:
        for mib in arguments.mib:
            for row in rows_of(m, n, tp, mib, sequence_parallel, arguments.runs):
                print(f"{row.case}: {row.ours:.2f} against {row.peer:.2f}, ratio {row.ratio:.2f}", file=sys.stderr)
                rows.append(row)
    show("bridge", rows, arguments.json)


if __name__ == "__main__":
    main()
