"""How soon a rank that becomes slower than its peers is found, in real runs of each layout.

Ranks under mimo-launch over gloo; the computation of each is a sleep, which needs no core, and varies from step to step by
`--noise`. From step 61 on one rank takes `--ratio` times as long. The detector that watches a run is played over the steps that
the ranks have recorded:

- `found after`: steps from the first slow one until the rank is found, the medians and the largest of all runs;
- `since`: the step that is given as the first slow one;
- `others`: how often another rank was found to be slow.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

from report import parser

from launcher.plan.plan_file import read_plan
from launcher.run_dir.layout import RunDirLayout
from launcher.steps.job_steps import JobStep
from launcher.steps.rank_step import RankStep
from launcher.steps.span_names import SpanNames
from launcher.steps.step_times import StepTimes
from launcher.stragglers.detector import StragglerDetector
from launcher.trace.recordings import load
from mimo_role import Topology
from mimo_role.monitoring.records import Recording
from mimo_role.monitoring.ring_reader import NewRecords

ROOT = Path(__file__).parents[1]
SLOW_FROM, STEPS = 61, 100


class Layout(NamedTuple):
    """Modules, and which of their ranks becomes slow."""

    layout: str
    modules: str
    slow_rank: int


LAYOUTS = {
    "dp": Layout("non_colocated", "vision: {dp: 3}, language: {}", 1),
    "tp": Layout("non_colocated", "vision: {}, language: {tp: 2}", 1),
    "pp": Layout("non_colocated", "vision: {}, language: {pp: 2, dp: 2}", 4),
    "colocated": Layout("colocated", "vision: {dp: 2}, language: {dp: 2}", 1),
    "uneven lanes": Layout("non_colocated", "vision: {dp: 3}, language: {dp: 2}", 4),
}
HOSTS = ("alpha", "beta", "gamma")
ON_HOSTS = Layout("non_colocated", "vision: {dp: 3}, language: {dp: 3}", 5)
"""With two ranks on each host."""

SCRIPT = """
import random, sys, time, torch, torch.distributed as dist, mimo_role
from mimo_role import ActivationSpec, Schedule1F1B

ctx = mimo_role.current()
steps, slow_rank, slow_from, ratio, noise = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *map(float, sys.argv[4:6])
weight, numbers = torch.ones(2, requires_grad=True), random.Random(ctx.rank)

def run(module, batch, inputs):
    slow = ratio if ctx.rank == slow_rank and step >= slow_from else 1.0
    time.sleep(0.02 * slow * numbers.lognormvariate(0, noise))
    if "tp" in ctx.name:  # within the forward, the others wait for the slow one
        dist.all_reduce(torch.ones(1), group=ctx.group(module, "tp"))
    return weight * next(iter(inputs.values()), torch.ones(12 // ctx.lane(module)[1], 2))

schedule = Schedule1F1B(
    ctx, run=run, spec_of=lambda *_: ActivationSpec.of(12, (2,), torch.float32), loss_of=lambda output, _: output.sum()
)
for step in range(1, steps + 1):
    ctx.step(step, of=steps)
    schedule.step([0, 1])
"""

CONFIG = """
name: stragglers
layout: {layout}
modules: {{{modules}}}
entry: {{script: script.py}}
runtime: {{backend: gloo}}
run_dir: {folder}/run
"""


@dataclass(frozen=True)
class Found:
    """What the detector makes of one run."""

    after: int | None
    """Steps until the slow rank was found; `None`: never."""
    since: int | None
    others: int


def measure(case: Layout, ratio: float, noise: float) -> Found:
    """Run a layout, and play the detector over what its ranks have recorded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = write(case, folder, ratio, noise)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return found_in(folder, case)


def measure_on_hosts(case: Layout, ratio: float, noise: float) -> Found:
    """The same on three hosts, which are network namespaces of this machine."""
    sys.path.insert(0, str(ROOT))
    from tests.cluster.hosts import Hosts

    with tempfile.TemporaryDirectory() as name, Hosts(HOSTS, Path(name)) as hosts:
        folder = Path(name)
        program, words = split(write(case, folder, ratio, noise, "pools: {hosts: {nodes: 3, procs_per_node: 2}}"))
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        agents = []
        for node, host in enumerate(HOSTS):
            place = ["--node-rank", str(node), "--rdzv-endpoint", f"{HOSTS[0]}:29500"]
            agents.append(hosts.popen(host, [*program, *place, *words], cwd=folder, env=environ))
        for agent in agents:
            _, said = agent.communicate()
            if agent.returncode:
                sys.exit(said)
        return found_in(folder, case)


def write(case: Layout, folder: Path, ratio: float, noise: float, more: str = "") -> list[str]:
    """Write the script and the config; return the command that runs them."""
    (folder / "script.py").write_text(SCRIPT)
    (folder / "job.yaml").write_text(CONFIG.format(layout=case.layout, modules=case.modules, folder=folder) + more)
    words = [str(each) for each in (STEPS, case.slow_rank, SLOW_FROM, ratio, noise)]
    return [sys.executable, "-m", "launcher", "run", str(folder / "job.yaml"), "--", *words]


def split(command: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """A command before the arguments of the script, and these."""
    at = list(command).index("--")
    return command[:at], command[at:]


def found_in(folder: Path, case: Layout) -> Found:
    """What the detector makes of the run in a folder."""
    files = RunDirLayout(folder / "run")
    plan = read_plan(files.plan_file)
    recordings = load(files, plan)
    assert recordings is not None
    return detect(plan.topology, steps_of(plan.topology, recordings.by_rank), case.slow_rank)


def steps_of(topology: Topology, recordings: dict[int, Recording]) -> list[JobStep]:
    """The steps that all ranks have ended."""
    by_step: dict[int, dict[int, RankStep]] = {}
    for rank, recording in recordings.items():
        times = StepTimes(rank, SpanNames(topology))
        new = NewRecords(list(recording.records), list(recording.names), recording.overwritten, recording.wall_offset_ns)
        for each in [*times.add(new), *times.finish(is_clean=True)]:
            by_step.setdefault(each.step, {})[rank] = each
    return [JobStep(step, ranks) for step, ranks in sorted(by_step.items()) if len(ranks) == len(recordings)]


def detect(topology: Topology, steps: list[JobStep], slow_rank: int) -> Found:
    detector, after, since, others = (
        StragglerDetector(topology, dict.fromkeys(range(topology.world_size), "here")),
        None,
        None,
        0,
    )
    for step in steps:
        for each in detector.add(step):
            if each.until_step is not None:
                continue
            if each.rank == slow_rank and step.step >= SLOW_FROM:
                after, since = after or step.step - SLOW_FROM + 1, since or each.since_step
            else:
                others += 1
    return Found(after, since, others)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--runs", type=int, default=5, help="runs of each layout (default: 5)")
    options.add_argument("--ratio", type=float, default=1.3, help="how much longer the slow rank takes (default: 1.3)")
    options.add_argument("--noise", type=float, default=0.05, help="the spread of each rank's times (default: 0.05)")
    options.add_argument("--hosts", action="store_true", help="also on three hosts: network namespaces, which need root")
    arguments = options.parse_args()
    runs, how = range(arguments.runs), (arguments.ratio, arguments.noise)
    found = {name: [measure(each, *how) for _ in runs] for name, each in LAYOUTS.items()}
    if arguments.hosts:
        found["three hosts"] = [measure_on_hosts(ON_HOSTS, *how) for _ in runs]
    if arguments.json:
        rows = [{"case": name, "runs": [asdict(each) for each in all_found]} for name, all_found in found.items()]
        print(json.dumps({"benchmark": "stragglers", "rows": rows}))
        return
    print(f"{'case':14}  {'found':>8}  {'found after':>14}  {'since':>8}  {'others':>6}")
    for name, all_found in found.items():
        after = [each.after for each in all_found if each.after is not None]
        since = [each.since for each in all_found if each.since is not None]
        steps = f"{median(after):g}, at most {max(after)}" if after else "-"
        first = f"{min(since)}-{max(since)}" if since else "-"
        count, others = f"{len(after)} of {len(all_found)}", sum(each.others for each in all_found)
        print(f"{name:14}  {count:>8}  {steps:>14}  {first:>8}  {others:6}")


if __name__ == "__main__":
    main()
