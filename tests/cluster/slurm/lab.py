"""A real SLURM cluster of virtual nodes on this machine, for tests."""

import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]
SCRIPTS = ROOT / "tests" / "cluster" / "lab"
BIN = ROOT / ".venv" / "bin"

OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}


@dataclass
class Lab:
    """The running cluster, as a user on its login node sees it."""

    conf: str
    cwd: Path
    path: str

    @classmethod
    def start(cls, nodes: int, cwd: Path, path: str, **settings: str) -> "Lab":
        done = subprocess.run(
            [SCRIPTS / "up.sh", str(nodes)],
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"the cluster does not start: {done.stdout}")
        line = next(line for line in done.stdout.splitlines() if line.startswith("export SLURM_CONF="))
        return cls(line.removeprefix("export SLURM_CONF="), cwd, path)

    @staticmethod
    def stop() -> None:
        subprocess.run([SCRIPTS / "down.sh"], capture_output=True, timeout=60, check=True)

    @property
    def folder(self) -> Path:
        """Where the cluster keeps its files."""
        return Path(self.conf).parent

    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PYTEST_", "MIMO_"))}
        return kept | {"SLURM_CONF": self.conf, "PATH": f"{self.path}:/usr/sbin:{os.environ['PATH']}"}

    def run(
        self, *command: str, check: bool = True, env: dict[str, str] | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess:
        """Run a command on the login node."""
        done = subprocess.run(
            command,
            cwd=self.cwd,
            env=self.environ() | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def sbatch(self, *words: str) -> str:
        """Submit; return the job's id."""
        return self.run("sbatch", "--parsable", *words).stdout.strip()

    def states(self, job: str) -> list[str]:
        """The state of each component."""
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").stdout.split()

    def wait(self, job: str, until=None, timeout_s: float = 90) -> list[str]:
        """Wait until the job is over, or until a condition of its states holds; return them."""
        holds = until or (lambda states: bool(states) and set(states) <= OVER)
        deadline = time.monotonic() + timeout_s
        while not holds(states := self.states(job)):
            assert time.monotonic() < deadline, f"job {job} is {states} after {timeout_s} s\n{self.output(job)}"
            time.sleep(0.2)
        return states

    def until(self, holds, timeout_s: float = 60) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < deadline, "not within the time"
            time.sleep(0.1)

    def output(self, job: str) -> str:
        """What a job's batch script wrote, wherever that is."""
        shown = self.run("scontrol", "show", "job", job, check=False).stdout
        paths = [
            Path(line.strip().removeprefix("StdOut=")) for line in shown.splitlines() if line.strip().startswith("StdOut=")
        ]
        return "".join(path.read_text() for path in paths[:1] if path.exists())

    def restarts(self, job: str) -> int:
        """How often the job has been requeued."""
        shown = self.run("scontrol", "show", "job", job).stdout
        return max(int(word.removeprefix("Restarts=")) for word in shown.split() if word.startswith("Restarts="))

    def clear(self) -> None:
        """End all jobs, and wait until the nodes are idle."""
        self.run("scancel", "--full", "--me", check=False)
        nodes = len(list((self.folder / "run").glob("n[0-9]*.pid")))
        alive = [path for path in (self.folder / "run").glob("n[0-9].pid") if Path("/proc", path.read_text().strip()).exists()]
        self.until(
            lambda: (
                self.run("sinfo", "-h", "-N", "-p", "lab", "-t", "idle", "-o", "%N").stdout.count("\n") >= len(alive)
                and not self.run("squeue", "--noheader").stdout.strip()
            ),
            timeout_s=90,
        )
        assert nodes
