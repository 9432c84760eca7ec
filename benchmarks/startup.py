"""Start-up against torchrun: the same script, alternating, on this machine.

The script joins torch.distributed over gloo, does one all-reduce and ends. Cases:

- `N ranks, whole process`: seconds from starting the command to its end;
- `N ranks, first collective`: seconds from starting the command until the last rank has its all-reduce's result;
- `N ranks, training, ...`: the same for a script that takes one step of AdamW with a model in DDP before;
- `32 ranks, memory (MiB)`: the sum of the proportional set sizes (PSS) of all of the job's processes, the launcher's
  included, while every rank has done its collective and waits;
- `--help`: seconds for the help text.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Row, alternate, parser, show

SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist
folder, hold = sys.argv[1:]
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == dist.get_world_size()
with open(os.path.join(folder, f"done{dist.get_rank()}"), "w") as file:
    file.write(repr(time.time()))
while hold == "hold" and not os.path.exists(os.path.join(folder, "release")):
    time.sleep(0.05)
dist.destroy_process_group()
"""

TRAINING = SCRIPT.replace(
    "total = torch.ones(1)\n",
    """
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
total = torch.ones(1)
""",
)

CONFIG = """
name: startup
layout: colocated
modules: {{language: {{dp: {ranks}}}}}
entry: {{script: script.py}}
runtime: {{join: script}}
run_dir: {folder}/run
"""


def ours(folder: Path, ranks: int) -> list[str]:
    (folder / "job.yaml").write_text(CONFIG.format(ranks=ranks, folder=folder))
    return [str(Path(sys.executable).with_name("mimo-launch")), "run", str(folder / "job.yaml"), "--"]


def torchrun(folder: Path, ranks: int) -> list[str]:
    command = str(Path(sys.executable).with_name("torchrun"))
    return [command, "--standalone", f"--nproc-per-node={ranks}", str(folder / "script.py")]


class Job:
    """One start of the script under either launcher, in a folder of its own."""

    def __init__(self, command, ranks: int, script: str = SCRIPT) -> None:
        self._command, self._ranks, self._script = command, ranks, script

    def seconds(self) -> tuple[float, float]:
        """Until the first collective is done on all ranks, and until the command has ended."""
        with tempfile.TemporaryDirectory() as name:
            folder, started = Path(name), time.time()
            self._start(folder, "go").communicate()
            ended = time.time()
            return max(float(file.read_text()) for file in self._done(folder)) - started, ended - started

    def memory_mib(self) -> float:
        """PSS of all of the job's processes after the collective."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            process = self._start(folder, "hold")
            while len(list(folder.glob("done*"))) < self._ranks:
                if process.poll() is not None:
                    raise RuntimeError("the job ended early")
                time.sleep(0.1)
            found = sum(pss_kib(pid) for pid in family(process.pid)) / 1024
            (folder / "release").touch()
            process.communicate()
            return found

    def _start(self, folder: Path, hold: str) -> subprocess.Popen:
        (folder / "script.py").write_text(self._script)
        command = [*self._command(folder, self._ranks), str(folder), hold]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _done(self, folder: Path) -> list[Path]:
        done = list(folder.glob("done*"))
        if len(done) != self._ranks:
            raise RuntimeError(f"{len(done)} of {self._ranks} ranks came through")
        return done


def family(pid: int) -> list[int]:
    """A process and all of its descendants."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def pss_kib(pid: int) -> int:
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def startup_rows(case: str, ranks: int, runs: int, command=ours, script: str = SCRIPT) -> list[Row]:
    """Start a script under our command and torchrun's: the whole process, and until the first collective."""
    sides = {"ours": Job(command, ranks, script), "peer": Job(torchrun, ranks, script)}
    first: dict[str, list[float]] = {"ours": [], "peer": []}

    def whole(side: str) -> float:
        collective, ended = sides[side].seconds()
        first[side].append(collective)
        return ended

    row = alternate(f"{case}, whole process", lambda: whole("ours"), lambda: whole("peer"), runs)
    again = iter(first["ours"]), iter(first["peer"])
    collective = alternate(f"{case}, first collective", lambda: next(again[0]), lambda: next(again[1]), runs)
    return [row, collective]


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[8, 32], help="worlds to start (default: 8 32)")
    options.add_argument("--training-ranks", type=int, nargs="*", default=[8], help="worlds that train (default: 8)")
    options.add_argument("--runs", type=int, default=5, help="alternating runs of each case (default: 5)")
    options.add_argument("--memory-ranks", type=int, default=32, help="the world whose memory is measured (default: 32)")
    arguments = options.parse_args()
    here = Path(sys.executable)
    rows = [row for ranks in arguments.ranks for row in startup_rows(f"{ranks} ranks", ranks, arguments.runs)]
    for ranks in arguments.training_ranks:
        rows += startup_rows(f"{ranks} ranks, training", ranks, arguments.runs, script=TRAINING)
    memory = [Job(side, arguments.memory_ranks).memory_mib for side in (ours, torchrun)]
    rows.append(alternate(f"{arguments.memory_ranks} ranks, memory (MiB)", *memory, runs=min(arguments.runs, 3)))
    helps = [lambda name=name: seconds_of(str(here.with_name(name)), "--help") for name in ("mimo-launch", "torchrun")]
    rows.append(alternate("--help", *helps, runs=2 * arguments.runs))
    show("startup", rows, arguments.json)


if __name__ == "__main__":
    main()
