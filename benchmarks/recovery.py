"""Recovery against torchrun: one rank of a job is killed, and all of its ranks are started again.

The same script under `mimo-launch run` with `runtime.max_restarts` and under `torchrun --max-restarts`: it joins over gloo
and does all-reduces until it is told to stop. A second after all ranks have had their first, one of them gets SIGKILL;
another one in each run, the same on both sides. Case:

- `N ranks, kill to collective`: seconds from the kill until the last rank of the next start has its first all-reduce's result.

torchrun gets `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`, a store for each start. As it comes (torch 2.13) it keeps one for all of
them, in which gloo's ranks find the addresses of the dead: not one of five restarts came through.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import Row, alternate, parser, show

SCRIPT = """
import os, sys, time
import torch, torch.distributed as dist

folder, attempt = sys.argv[1], os.environ["TORCHELASTIC_RESTART_COUNT"]
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == dist.get_world_size()
done = os.path.join(folder, f"attempt{attempt}.rank{dist.get_rank()}")
with open(done + ".tmp", "w") as file:
    file.write(f"{time.time()!r} {os.getpid()}")
os.rename(done + ".tmp", done + ".done")
stops = torch.zeros(1)
while not stops.item():
    time.sleep(0.005)
    # All ranks have to see it at the same step.
    stops.fill_(os.path.exists(os.path.join(folder, "stop")))
    dist.all_reduce(stops)
dist.destroy_process_group()
"""

CONFIG = """
name: recovery
layout: colocated
modules: {{language: {{dp: {ranks}}}}}
entry: {{script: script.py}}
runtime: {{join: script, max_restarts: 1}}
run_dir: {folder}/run
"""

A_STORE_PER_START = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Read by torchelastic's own rendezvous, which mimo-launch does not use."""

SETTLED_S = 1.0
LIMIT_S = 300.0

Command = Callable[[Path, int], list[str]]


def ours(folder: Path, ranks: int) -> list[str]:
    (folder / "job.yaml").write_text(CONFIG.format(ranks=ranks, folder=folder))
    return [str(Path(sys.executable).with_name("mimo-launch")), "run", str(folder / "job.yaml"), "--"]


def torchrun(folder: Path, ranks: int) -> list[str]:
    command = str(Path(sys.executable).with_name("torchrun"))
    return [command, "--standalone", f"--nproc-per-node={ranks}", "--max-restarts=1", str(folder / "script.py")]


def seconds(command: Command, ranks: int, victim: int) -> float:
    """From the death of a rank until the last of those that are started again has done its first collective."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "script.py").write_text(SCRIPT)
        words = [*command(folder, ranks), str(folder)]
        environment = os.environ | A_STORE_PER_START
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        try:
            first = wait_for_all(folder, 0, ranks, process)
            time.sleep(SETTLED_S)
            killed_at = time.time()
            os.kill(first[victim][1], signal.SIGKILL)
            again = wait_for_all(folder, 1, ranks, process)
            (folder / "stop").touch()
            if code := process.wait(LIMIT_S):
                raise RuntimeError(f"the job ended with exit code {code}")
        finally:
            end(process)
        return max(done_at for done_at, _ in again) - killed_at


def wait_for_all(folder: Path, attempt: int, ranks: int, process: subprocess.Popen) -> list[tuple[float, int]]:
    """When each rank of a start had its first collective's result, and its process id."""
    files = [folder / f"attempt{attempt}.rank{rank}.done" for rank in range(ranks)]
    deadline = time.monotonic() + LIMIT_S
    while not all(file.exists() for file in files):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"start {attempt}: {sum(file.exists() for file in files)} of {ranks} ranks came through")
        time.sleep(0.02)
    return [(float(done_at), int(pid)) for done_at, pid in (file.read_text().split() for file in files)]


def end(process: subprocess.Popen) -> None:
    """After a failure of the measurement itself; the launchers end their ranks."""
    if process.poll() is None:
        process.terminate()
        process.wait()


def recovery_row(ranks: int, runs: int) -> Row:
    # As far from each other as they go: neighbours may share a core.
    victims = [run * (ranks // 2 + 1) % ranks for run in range(runs)]
    left = {command: iter(victims) for command in (ours, torchrun)}

    def measure(command: Command) -> float:
        return seconds(command, ranks, next(left[command]))

    return alternate(f"{ranks} ranks, kill to collective", lambda: measure(ours), lambda: measure(torchrun), runs)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, nargs="+", default=[8], help="worlds to start (default: 8)")
    options.add_argument("--runs", type=int, default=5, help="alternating runs of each case (default: 5)")
    arguments = options.parse_args()
    show("recovery", [recovery_row(ranks, arguments.runs) for ranks in arguments.ranks], arguments.json)


if __name__ == "__main__":
    main()
