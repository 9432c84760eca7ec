"""How good the predictions of `mimo-launch advise` are, on workloads whose stages sleep for known times.

Real ranks under mimo-launch over gloo, of benchmarks/sleeping_layouts.py. All layouts of a workload run one after another on
the same ranks, each with groups and a recording of its own:

- `case N`: a random workload (costs of two or three modules, micro-batches, frozen encoders, whether ranks meet between steps)
  runs in a random layout; the step of another random layout on as many ranks is predicted from its recordings, and measured.
  The last line has the share of the cases in which the prediction is within 5 % of it.
- `workload N`: ten layouts of a workload run. From the recordings of each of them all ten are predicted. The last line has the
  share of these rankings in which the fastest as measured is among the first two as predicted.

A layout whose forwards and backwards take much longer than their sleeps was disturbed by other load of the machine. It runs
again, and of three tries the least disturbed counts.
"""

import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from report import parser

from launcher.advise.candidates import Layout
from launcher.advise.cost_model import Assumptions
from launcher.advise.measured import Measured, measure
from launcher.advise.predictor import Predictor
from launcher.coordination.clock_offset import ClockOffset
from launcher.plan.plan_file import read_plan
from launcher.run_dir.layout import RunDirLayout
from launcher.trace.recordings import load, save_clock
from mimo_role import ModuleSizes, Topology

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("sleeping_layouts.py")
SAMPLES = 840
"""Of a micro-batch: all numbers of lanes up to 8 divide it."""
SLEEPS_MS = (5, 40)
"""What a forward or a backward of one stage takes in all layouts."""
QUIET_MS, TRIES = 1.1, 3
"""A layout whose forwards and backwards take longer than their sleeps by more, on average, is tried so often."""
LARGEST_WORLD, LAYOUTS, WITHIN = 8, 10, 0.05

Sizes = Mapping[str, tuple[int, int]]
"""By module: dp and pp."""


@dataclass(frozen=True)
class Workload:
    """What the stages do, on a number of ranks."""

    world: int
    micro_batches: int
    forward_ms: Mapping[str, float]
    backward_ms: Mapping[str, float]
    frozen: tuple[str, ...]
    meets: bool
    steps: int
    samples: int = SAMPLES

    def fits(self, sizes: Sizes) -> bool:
        """Whether no stage sleeps for too short or too long."""
        times = [
            found[module] / (dp * pp) for found in (self.forward_ms, self.backward_ms) for module, (dp, pp) in sizes.items()
        ]
        return SLEEPS_MS[0] <= min(times) and max(times) <= SLEEPS_MS[1]


@dataclass(frozen=True)
class Case:
    """A prediction and what was measured, in ms."""

    ran: str
    predicted_for: str
    micro_batches: int
    of_run_ms: float
    predicted_ms: float
    measured_ms: float

    @property
    def error(self) -> float:
        return self.predicted_ms / self.measured_ms - 1


def random_workload(source: random.Random, steps: int) -> Workload:
    modules = ["vision", *(["audio"] if source.random() < 1 / 3 else []), "language"]
    forward_ms = {module: source.uniform(15, 80) for module in modules}
    return Workload(
        world=source.randint(len(modules) + 1, LARGEST_WORLD),
        micro_batches=source.randint(2, 8),
        forward_ms=forward_ms,
        backward_ms={module: source.uniform(1, 2) * time_ms for module, time_ms in forward_ms.items()},
        frozen=("vision",) if source.random() < 1 / 4 else (),
        meets=source.random() < 3 / 4,
        steps=steps,
    )


def layouts_of(workload: Workload) -> list[Sizes]:
    """All that fit, with at most two stages of an encoder and four of the language model."""
    found: list[Sizes] = []

    def add(modules: Sequence[str], left: int, chosen: Sizes) -> None:
        if not modules:
            if left == 0 and workload.fits(chosen):
                found.append(chosen)
            return
        for pp in (1, 2, 4) if modules[0] == "language" else (1, 2):
            for dp in range(1, left // pp + 1):
                add(modules[1:], left - dp * pp, {**chosen, modules[0]: (dp, pp)})

    add(list(workload.forward_ms), workload.world, {})
    return found


def workload_with(layouts: int, source: random.Random, steps: int) -> tuple[Workload, list[Sizes]]:
    """A random workload that has at least so many layouts, and as many of them."""
    while True:
        workload = random_workload(source, steps)
        if len(found := layouts_of(workload)) >= layouts:
            return workload, source.sample(found, layouts)


def run(workload: Workload, layouts: Sequence[Sizes], keep: Path | None) -> list[Measured]:
    """Run layouts of a workload, and read their recordings; again, where other load of the machine has disturbed them."""
    tries: list[list[Measured]] = [[] for _ in layouts]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if keep is None else keep
        for number in range(TRIES):
            again = [
                at for at, found in enumerate(tries) if all(excess_ms(workload, layouts[at], each) > QUIET_MS for each in found)
            ]
            if again:
                found = run_once(workload, {f"layout{at}": layouts[at] for at in again}, folder / f"try{number}")
                for at in again:
                    tries[at].append(found[f"layout{at}"])
    return [
        min(found, key=lambda measured: excess_ms(workload, sizes, measured))
        for found, sizes in zip(tries, layouts, strict=True)
    ]


def is_disturbed(workload: Workload, sizes: Sizes, tries: Sequence[Measured]) -> bool:
    """Whether all tries so far were disturbed."""
    return all(excess_ms(workload, sizes, each) > QUIET_MS for each in tries)


def excess_ms(workload: Workload, sizes: Sizes, measured: Measured) -> float:
    """By how much forwards and backwards took longer than their sleeps, on average over the stages."""
    found = []
    for at, cost in measured.stages.items():
        times = [(cost.forward_s, workload.forward_ms)] + ([(cost.backward_s, workload.backward_ms)] if cost.backward_s else [])
        found += [1000 * time_s - sleeps[at.module] / math.prod(sizes[at.module]) for time_s, sleeps in times]
    return fmean(found)


def run_once(workload: Workload, layouts: Mapping[str, Sizes], folder: Path) -> dict[str, Measured]:
    """Run layouts, or read those that are kept in the folder already; by name."""
    files = {name: RunDirLayout(folder / name) for name in layouts}
    is_there = all(any(each.attempt_dir(0).glob("*.recording.gz")) for each in files.values())
    if not is_there:
        start(workload, layouts, files, folder)
    plan = read_plan(RunDirLayout(folder / "runs" / "sleep").plan_file)
    measured = {}
    for name, sizes in layouts.items():
        own_plan = replace(plan, topology=Topology.from_modules(layout_of(sizes)))
        found = load(files[name], own_plan)
        assert found is not None
        measured[name] = measure(own_plan, found)
    return measured


def start(workload: Workload, layouts: Mapping[str, Sizes], files: Mapping[str, RunDirLayout], folder: Path) -> None:
    """Run layouts on the same ranks."""
    for each in files.values():
        each.attempt_dir(0).mkdir(parents=True, exist_ok=True)
        save_clock(each, 0, 0, ClockOffset.none(0))
    modules = {name: {"dp": dp, "pp": pp} for name, (dp, pp) in next(iter(layouts.values())).items()}
    job = {"name": "sleep", "layout": "non_colocated", "modules": modules, "entry": {"script": str(SCRIPT)}}
    job["runtime"] = {"join": "script", "backend": "gloo"}
    Path(folder, "job.yaml").write_text(json.dumps(job), encoding="utf-8")
    task = {
        "folders": [str(each.path.absolute()) for each in files.values()],
        "layouts": [{name: {"dp": dp, "pp": pp} for name, (dp, pp) in sizes.items()} for sizes in layouts.values()],
        "workload": asdict(workload),
    }
    command = [sys.executable, "-m", "launcher", "run", "job.yaml", "--", json.dumps(task)]
    environ = {"PYTHONPATH": str(ROOT), "PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=600, check=False)
    if ended.returncode:
        sys.exit(f"{', '.join(map(text_of, layouts.values()))}: exit code {ended.returncode}\n{ended.stdout}{ended.stderr}")


def layout_of(sizes: Sizes) -> Layout:
    return {name: ModuleSizes(dp=dp, pp=pp) for name, (dp, pp) in sizes.items()}


def predict(measured: Measured, sizes: Sizes) -> float:
    """The predicted time of a step in ms."""
    layout = layout_of(sizes)
    return 1000 * Predictor(measured, Assumptions()).predict(layout, Topology.from_modules(layout)).step_s


def text_of(sizes: Sizes) -> str:
    return ", ".join(f"{name} dp{dp}" + (f" pp{pp}" if pp > 1 else "") for name, (dp, pp) in sizes.items())


def cases(number: int, seed: int, steps: int, keep: Path | None) -> Iterator[Case]:
    for at in range(number):
        workload, (before, after) = workload_with(2, random.Random(f"case {seed} {at}"), steps)
        measured, checked = run(workload, (before, after), keep and keep / f"case{at}")
        case = Case(
            ran=text_of(before),
            predicted_for=text_of(after)
            + (", vision frozen" if workload.frozen else "")
            + ("" if workload.meets else ", steps overlap"),
            micro_batches=workload.micro_batches,
            of_run_ms=1000 * measured.step_s,
            predicted_ms=predict(measured, after),
            measured_ms=1000 * checked.step_s,
        )
        print(
            f"case {at}: {case.ran} -> {case.predicted_for}, {case.micro_batches} micro-batches: step {case.of_run_ms:.1f} -> "
            f"{case.predicted_ms:.1f} ms predicted, {case.measured_ms:.1f} measured, {case.error:+.1%}",
            file=sys.stderr,
            flush=True,
        )
        yield case


def rankings(count: int, seed: int, steps: int, keep: Path | None) -> Iterator[dict[str, Any]]:
    """By workload and layout that ran: which place the fastest layout has among the predicted ones, and all times."""
    for at in range(count):
        workload, layouts = workload_with(LAYOUTS, random.Random(f"ranking {seed} {at}"), steps)
        ran = run(workload, layouts, keep and keep / f"workload{at}")
        measured_ms = [1000 * each.step_s for each in ran]
        best = min(range(LAYOUTS), key=measured_ms.__getitem__)
        places = []
        for measured in ran:
            predicted_ms = [predict(measured, sizes) for sizes in layouts]
            places.append(sorted(range(LAYOUTS), key=predicted_ms.__getitem__).index(best) + 1)
            yield {"workload": at, "place": places[-1], "measured_ms": measured_ms, "predicted_ms": predicted_ms}
        print(
            f"workload {at}: {workload.world} ranks, {workload.micro_batches} micro-batches: the fastest of {LAYOUTS}, "
            f"{text_of(layouts[best])}, has these places as predicted from each of them: {', '.join(map(str, places))}",
            file=sys.stderr,
            flush=True,
        )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--cases", type=int, default=40, help="predictions to check (default: 40)")
    options.add_argument("--workloads", type=int, default=20, help="workloads whose layouts are ranked (default: 20)")
    options.add_argument("--steps", type=int, default=8, help="steps of each run, of which the first two do not count")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep the runs here; those that are there are not repeated"
    )
    arguments = options.parse_args()
    found = list(cases(arguments.cases, arguments.seed, arguments.steps, arguments.keep))
    ranked = list(rankings(arguments.workloads, arguments.seed, arguments.steps, arguments.keep))
    if arguments.json:
        print(json.dumps({"benchmark": "advise", "cases": [asdict(case) for case in found], "rankings": ranked}))
        return
    if found:
        errors = sorted(abs(case.error) for case in found)
        within = sum(error <= WITHIN for error in errors)
        print(
            f"{within} of {len(found)} predictions within {WITHIN:.0%}; median error {errors[len(errors) // 2]:.1%}, "
            f"largest {errors[-1]:.1%}"
        )
    if ranked:
        first_two = sum(each["place"] <= 2 for each in ranked)
        print(f"{first_two} of {len(ranked)} rankings have the fastest layout among the first two")


if __name__ == "__main__":
    main()
