"""What it costs that ranks are watched, and compared before they join: each with and without, alternating, on this machine.

Cases; `ours` is with it, `peer` without:

- `a beat (ns) of a step of 10 ms`: one `ctx.step()` into shared memory, and the step's nanoseconds: their ratio is its share;
- `a step (ms), beat and watched`: 2 ranks train, each step a matmul forward and back and one small all-reduce; with
  `ctx.step()` and `runtime.stall_timeout_s: 60`, and with neither. Rank 0's time over all steps, divided by their number. The
  diagnostics thread, which waits on a pipe, runs in both;
- `records (us) of a step of 5 ms`: what a rank records in a step of four micro-batches, in CPU time of its thread, and the
  step's microseconds: their ratio is its share; the same of a step of 100 ms;
- `an all-reduce of one rank (us)`: its CPU time in the thread that calls it, with and without `CollectiveWaits`; nothing is
  sent, so this is the least that a collective takes;
- `a step of 5 ms (ms), recorded`: 2 ranks, an encoder and a language model, with four micro-batches whose forwards take a
  fixed time; with a recorder and without one; the same of a step of 100 ms;
- `a second of 8 ranks at 10 steps (ms)`: what an agent takes to read what its ranks have recorded in a second, to compare them
  and to write the files, in CPU time, and the second's milliseconds: their ratio is its share of a core;
- `N ranks arrive (s)`: N threads in place of ranks, on nodes of 8 with an agent each: from the first that arrives until all
  know that they may go on, with and without the comparison;
- `N ranks, whole run (s)`: a script that joins, does one all-reduce and ends; with the comparison, and with `--no-preflight`.
"""

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from report import Row, alternate, parser, show

if TYPE_CHECKING:
    from mimo_role.monitoring.recorder import Recorder

BEATS = 200_000
RECORDED_STEPS = 2_000
STEP_NS = 10_000_000
TIMEOUT_S = 120.0
RANKS_PER_NODE = 8

TRAINING = """
import sys, time
import torch, torch.distributed as dist
import mimo_role

ctx = mimo_role.current()
file, steps, beats = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "beat"
weight = torch.randn(256, 256, requires_grad=True)
batch = torch.randn(128, 256)
gradient = torch.zeros(16)
for step in range(-steps // 10, steps):
    if step == 0:
        dist.barrier()
        began = time.perf_counter()
    if beats:
        ctx.step()
    (batch @ weight).square().mean().backward()
    dist.all_reduce(gradient)
    with torch.no_grad():
        weight -= 0.01 * weight.grad
        weight.grad = None
if dist.get_rank() == 0:
    with open(file, "w") as result:
        result.write(repr((time.perf_counter() - began) / steps))
"""

RECORDED = """
import sys, time
import torch, torch.distributed as dist
import mimo_role
from mimo_role import ActivationSpec, Schedule1F1B
from mimo_role.monitoring.recorder import Recorder

ctx = mimo_role.current()
file, steps, step_s, is_on = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "on"
if not is_on:
    ctx.recorder = Recorder(None)
weight = torch.ones(8, requires_grad=True)

def run(module, batch, inputs):
    until = time.perf_counter() + step_s / 4
    output = weight * next(iter(inputs.values()), torch.ones(4, 8))
    while time.perf_counter() < until:
        pass
    return output

schedule = Schedule1F1B(
    ctx, run=run, spec_of=lambda *_: ActivationSpec.of(4, (8,), torch.float32), loss_of=lambda output, _: output.sum()
)
for step in range(-3, steps):
    if step == 0:
        dist.barrier()
        began = time.perf_counter()
    ctx.step()
    with ctx.span("data"):
        batches = [0, 1, 2, 3]
    losses = schedule.step(batches)
    with ctx.span("optimizer"):
        weight.grad = None
    ctx.log(loss=losses[0] if losses else 0.0)
if dist.get_rank() == 1:
    with open(file, "w") as result:
        result.write(repr((time.perf_counter() - began) / steps))
"""

JOINING = """
import torch, torch.distributed as dist

dist.all_reduce(torch.ones(1))
"""

CONFIG = """
name: watching
layout: {layout}
modules: {{{modules}}}
entry: {{script: script.py}}
runtime: {{backend: gloo, stall_timeout_s: {stall_timeout_s}}}
run_dir: {folder}/run
"""


def beat_ns() -> float:
    """One `ctx.step()`, median over five rounds of many."""
    from mimo_role.monitoring.heartbeat import Heartbeat

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        heartbeat = Heartbeat(Path(folder, "rank0.heartbeat"))
        rounds = []
        for _ in range(5):
            began = time.perf_counter_ns()
            for _ in range(BEATS):
                heartbeat.step()
            rounds.append((time.perf_counter_ns() - began) / BEATS)
        return median(rounds)


def record_step(recorder: "Recorder", step: int) -> None:
    """What a rank records in a step of four micro-batches."""
    from mimo_role.monitoring.records import Kind

    recorder.begin_step(step)
    for micro_batch in range(4):
        for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.WAIT_ACTIVATIONS, Kind.SEND_GRADIENTS, Kind.WAIT_SENT):
            with recorder.span(kind, "language.0", micro_batch, 1):
                pass
    for name in ("data", "optimizer", "reduce gradients"):
        with recorder.span(Kind.SPAN, name):
            pass
    recorder.scalar("loss", 1.0)


def records_us() -> float:
    """What a rank records in a step: CPU time, median over five rounds of many."""
    from mimo_role.monitoring.recorder import Recorder
    from mimo_role.monitoring.ring import Ring

    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        recorder, rounds = Recorder(Ring.create(Path(folder, "rank0.recording"), 0, 1)), []
        for _ in range(5):
            began = time.thread_time_ns()
            for step in range(RECORDED_STEPS):
                record_step(recorder, step)
            rounds.append((time.thread_time_ns() - began) / RECORDED_STEPS / 1000)
        return median(rounds)


def sampled_ms(ranks: int = 8, steps_per_s: int = 10, seconds: int = 20) -> float:
    """What an agent takes for a second of its ranks' records: CPU time, median over the seconds."""
    from launcher.agent.live_attempt import LiveAttempt
    from launcher.agent.node_job import NodeJob
    from launcher.config.loader import load
    from launcher.coordination.single_node import SingleNode
    from launcher.live.files import LiveFiles
    from launcher.plan.planner import make_plan
    from launcher.run_dir.layout import RunDirLayout
    from mimo_role.monitoring.recorder import Recorder
    from mimo_role.monitoring.ring import Ring

    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        config_file = write_job(Path(name), JOINING, ranks)
        plan = make_plan(load(config_file, [])[0], config_file, [])
        nodes = SingleNode(plan, "here", "run")
        job = NodeJob(plan=plan, nodes=nodes, server=None, run_dir=RunDirLayout(Path(name)), node_dir=Path(memory), say=say)
        rings = [Ring.create(Path(memory, f"rank{rank}.recording"), rank, ranks) for rank in range(ranks)]
        recorders = [Recorder(ring) for ring in rings]
        attempt, took = LiveAttempt(job, 0, LiveFiles(job.run_dir)), []
        for second in range(seconds):
            for recorder in recorders:
                for step in range(steps_per_s):
                    record_step(recorder, second * steps_per_s + step)
            began = time.thread_time_ns()
            attempt.sample()
            took.append((time.thread_time_ns() - began) / 1e6)
        return median(took)


def collective_us(*, is_on: bool) -> float:
    """One all-reduce: CPU time of its thread, median over five rounds of many."""
    import torch
    import torch.distributed as dist

    from mimo_role.monitoring.collective_waits import CollectiveWaits
    from mimo_role.monitoring.recorder import Recorder
    from mimo_role.monitoring.ring import Ring

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        waits = CollectiveWaits(Recorder(Ring.create(Path(folder, "rank0.recording"), 0, 1)))
        if is_on:
            waits.install()
        numbers, rounds = torch.zeros(16), []
        for _ in range(5):
            began = time.thread_time_ns()
            for _ in range(RECORDED_STEPS):
                dist.all_reduce(numbers)
            rounds.append((time.thread_time_ns() - began) / RECORDED_STEPS / 1000)
        waits.remove()
    dist.destroy_process_group()
    return median(rounds)


def recorded_step_ms(steps: int, step_s: float, *, is_on: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        modules = "non_colocated", "vision: {}, language: {}"
        config, result = write_job(Path(name), RECORDED, ranks=2, modules=modules), Path(name, "seconds")
        mimo_launch("run", str(config), "--", str(result), str(steps), str(step_s), "on" if is_on else "off")
        return 1000 * float(result.read_text())


def write_job(
    folder: Path, script: str, ranks: int, stall_timeout_s: float = 60.0, modules: tuple[str, str] | None = None
) -> Path:
    (folder / "script.py").write_text(script)
    config = folder / "job.yaml"
    layout, modules = modules or ("colocated", f"language: {{dp: {ranks}}}")
    config.write_text(CONFIG.format(layout=layout, modules=modules, folder=folder, stall_timeout_s=stall_timeout_s))
    return config


def mimo_launch(*words: str) -> None:
    command = [str(Path(sys.executable).with_name("mimo-launch")), *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def step_ms(steps: int, *, watched: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        config = write_job(Path(name), TRAINING, ranks=2, stall_timeout_s=60.0 if watched else 0.0)
        result = Path(name, "seconds")
        mimo_launch("run", str(config), "--", str(result), str(steps), "beat" if watched else "silent")
        return 1000 * float(result.read_text())


def arriving_s(ranks: int, *, compares: bool) -> float:
    """From the first arrival until all may go on: nodes of 8, each with an agent's own code, over a real control store."""
    from launcher.config.loader import load
    from launcher.coordination.coordinator import Coordinator
    from launcher.coordination.node_identity import Endpoint, LocalNode
    from launcher.plan.planner import make_plan
    from launcher.preflight.check import PreflightCheck
    from launcher.preflight.facts import arrive, gather

    with tempfile.TemporaryDirectory() as name:
        config_file = write_job(Path(name), JOINING, ranks)
        overrides = [f"pools={{a: {{nodes: {ranks // RANKS_PER_NODE}, procs_per_node: {RANKS_PER_NODE}}}}}"]
        plan = replace(make_plan(load(config_file, overrides)[0], config_file, []), preflight=compares)
        facts = gather(rank=0, local_rank=0, topology_digest=plan.topology.digest, entry=plan.entry)
        names = [node.name for node in plan.nodes]
        endpoint = Endpoint("127.0.0.1", free_port())
        folders = [Path(name, node) for node in names]
        for folder in folders:
            folder.mkdir()
        coordinators = [Coordinator(plan, LocalNode(node, endpoint), name) for node, name in enumerate(names)]
        with ThreadPoolExecutor(len(names)) as threads:
            list(threads.map(lambda coordinator: coordinator.meet("run", say), coordinators))
        agents = [PreflightCheck(plan, 0, *each, say) for each in zip(folders, coordinators, strict=True)]
        for agent in agents:
            agent.start()
        with ThreadPoolExecutor(ranks) as threads:
            began = time.perf_counter()
            calls = [
                threads.submit(
                    arrive,
                    replace(facts, rank=rank, local_rank=rank % RANKS_PER_NODE),
                    folders[rank // RANKS_PER_NODE],
                    TIMEOUT_S,
                    wait=True,
                )
                for rank in range(ranks)
            ]
            if not all(call.result() for call in calls):
                raise RuntimeError(f"the ranks do not fit together: {agents[0].failure}")
            took = time.perf_counter() - began
        for agent in agents:
            agent.stop()
        for coordinator in reversed(coordinators):
            coordinator.leave(0.0)
        return took


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def say(text: str) -> None:
    print(text, file=sys.stderr)


def whole_run_s(ranks: int, *, compares: bool) -> float:
    with tempfile.TemporaryDirectory() as name:
        config = write_job(Path(name), JOINING, ranks)
        began = time.perf_counter()
        mimo_launch("run", str(config), *([] if compares else ["--no-preflight"]))
        return time.perf_counter() - began


def with_and_without(case: str, measure: Callable[[bool], float], runs: int) -> Row:
    return alternate(case, partial(measure, True), partial(measure, False), runs)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=5, help="alternating runs of each case (default: 5)")
    options.add_argument("--ranks", type=int, default=64, help="the world that is compared (default: 64)")
    options.add_argument("--steps", type=int, default=2000, help="steps of a training run (default: 2000)")
    arguments = options.parse_args()
    ranks, steps, runs = arguments.ranks, arguments.steps, arguments.runs
    arriving_s(ranks, compares=False)  # the resolver's first answer about so many sockets can take seconds
    rows = [
        alternate("a beat (ns) of a step of 10 ms", beat_ns, lambda: STEP_NS, runs),
        with_and_without("a step (ms), beat and watched", lambda does: step_ms(steps, watched=does), runs),
        alternate("records (us) of a step of 5 ms", records_us, lambda: 5_000, runs),
        alternate("records (us) of a step of 100 ms", records_us, lambda: 100_000, runs),
        with_and_without("an all-reduce of one rank (us)", lambda does: collective_us(is_on=does), runs),
        with_and_without("a step of 5 ms (ms), recorded", lambda does: recorded_step_ms(steps, 0.005, is_on=does), runs),
        with_and_without(
            "a step of 100 ms (ms), recorded", lambda does: recorded_step_ms(max(1, steps // 20), 0.1, is_on=does), runs
        ),
        alternate("a second of 8 ranks at 10 steps (ms)", sampled_ms, lambda: 1_000, runs),
        with_and_without(f"{ranks} ranks arrive (s)", lambda does: arriving_s(ranks, compares=does), runs),
        with_and_without(f"{ranks} ranks, whole run (s)", lambda does: whole_run_s(ranks, compares=does), runs),
    ]
    show("watching", rows, arguments.json)


if __name__ == "__main__":
    main()
