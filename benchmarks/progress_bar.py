"""Progress bars against torchrun: what passing on the ranks' output costs the launcher itself.

Every rank overwrites a bar of 120 bytes ten times a second, as tqdm does, without a line end. torchrun runs with
`--redirects 3 --tee 3`, so that it writes log files and prints too; it prints every state. Cases:

- `N ranks, a bar (CPU s in 5 s)`: from three seconds after all ranks have begun;
- `N ranks, M MB (CPU s)`: all of a job in which each rank first writes so much of its bar at once;
- `N ranks, M MB (peak MiB)`: the launcher's resident memory in the same jobs.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from report import Row, alternate, parser, show

SCRIPT = """
import os, sys, time

folder, megabytes, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
state = ("\\repoch 0:  42%|" + "#" * 60 + "| 1234/99999 [loss=0.123]").ljust(119)
for _ in range(megabytes * 1_000_000 // len(state) // 1000):
    sys.stderr.write(state * 1000)
sys.stderr.flush()
open(os.path.join(folder, "begun" + os.environ["RANK"]), "w").close()
for _ in range(round(seconds * 10)):
    sys.stderr.write(state)
    sys.stderr.flush()
    time.sleep(0.1)
sys.stderr.write("\\n")
"""

CONFIG = """
name: bar
layout: colocated
modules: {{language: {{dp: {ranks}}}}}
entry: {{script: script.py}}
runtime: {{backend: gloo, join: script}}
run_dir: {folder}/run
"""

SETTLED_S = 3.0
WINDOW_S = 5.0
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Command = Callable[[Path, int], list[str]]


class Usage(NamedTuple):
    """What a launcher has used, without its ranks."""

    cpu_s: float
    peak_mib: float


def ours(folder: Path, ranks: int) -> list[str]:
    (folder / "job.yaml").write_text(CONFIG.format(ranks=ranks, folder=folder))
    return [str(Path(sys.executable).with_name("mimo-launch")), "run", str(folder / "job.yaml"), "--"]


def torchrun(folder: Path, ranks: int) -> list[str]:
    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", f"--nproc-per-node={ranks}"]
    return [*command, "--redirects=3", "--tee=3", f"--log-dir={folder / 'logs'}", str(folder / "script.py")]


def start(command: Command, folder: Path, ranks: int, megabytes: int, seconds: float) -> subprocess.Popen:
    (folder / "script.py").write_text(SCRIPT)
    words = [*command(folder, ranks), str(folder), str(megabytes), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def cpu_s(pid: int) -> float:
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def peak_mib(pid: int) -> float:
    """The most resident memory so far; 0 once the process has ended."""
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def seconds_of_a_bar(command: Command, ranks: int) -> float:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(command, folder, ranks, megabytes=0, seconds=SETTLED_S + WINDOW_S + 2.0)
        while len(list(folder.glob("begun*"))) < ranks:
            if process.poll() is not None:
                raise RuntimeError("the job ended early")
            time.sleep(0.1)
        time.sleep(SETTLED_S)
        before = cpu_s(process.pid)
        time.sleep(WINDOW_S)
        used = cpu_s(process.pid) - before
        process.wait()
        return used


def usage_of_a_job(command: Command, ranks: int, megabytes: int) -> Usage:
    with tempfile.TemporaryDirectory() as name:
        process, peak = start(command, Path(name), ranks, megabytes, seconds=5.0), 0.0
        # Its times can be read until it is waited for.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            peak = max(peak, peak_mib(process.pid))
            time.sleep(0.1)
        used = cpu_s(process.pid)
        if code := process.wait():
            raise RuntimeError(f"the job ended with exit code {code}")
        return Usage(used, peak)


def job_rows(ranks: int, megabytes: int, runs: int) -> list[Row]:
    peaks: dict[Command, list[float]] = {ours: [], torchrun: []}

    def measure(command: Command) -> float:
        usage = usage_of_a_job(command, ranks, megabytes)
        peaks[command].append(usage.peak_mib)
        return usage.cpu_s

    case = f"{ranks} ranks, {megabytes} MB"
    row = alternate(f"{case} (CPU s)", lambda: measure(ours), lambda: measure(torchrun), runs)
    again = iter(peaks[ours]), iter(peaks[torchrun])
    return [row, alternate(f"{case} (peak MiB)", lambda: next(again[0]), lambda: next(again[1]), runs)]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--ranks", type=int, default=8, help="the world (default: 8)")
    options.add_argument("--megabytes", type=int, default=100, help="what each rank writes at once (default: 100)")
    options.add_argument("--runs", type=int, default=3, help="alternating runs of each case (default: 3)")
    arguments = options.parse_args()
    ranks, runs = arguments.ranks, arguments.runs
    case = f"{ranks} ranks, a bar (CPU s in 5 s)"
    bar = alternate(case, lambda: seconds_of_a_bar(ours, ranks), lambda: seconds_of_a_bar(torchrun, ranks), runs)
    show("progress_bar", [bar, *job_rows(ranks, arguments.megabytes, runs)], arguments.json)


if __name__ == "__main__":
    main()
