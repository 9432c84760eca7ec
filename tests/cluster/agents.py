"""One mimo-launch per host in tests, and the proof that none of their processes is left."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.hosts import Hosts
from tests.launcher.jobs import ROOT

CONFIG = """\
name: nodes
layout: non_colocated
modules:
  vision:   {dp: 3}
  language: {dp: 3}
pools:
  one:   {nodes: 1, procs_per_node: 1}
  two:   {nodes: 1, procs_per_node: 2}
  three: {nodes: 1, procs_per_node: 3}
entry: {script: script.py}
run_dir: run
"""

PREFIX = "mimo-launch: "
_MARK = "MIMO_CLUSTER_TEST"

_IMPATIENT = """
from launcher import cli
from launcher.coordination import liveness, membership
liveness.LOST_AFTER_S, membership.FAREWELL_S = {}, 2.0
cli.entry()
"""
"""mimo-launch, with another time until a node is lost."""


@dataclass(frozen=True)
class Done:
    """How one node's mimo-launch ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """Its own messages on stderr, but for the warnings about the plan; not what the ranks and torch write there."""
        own = [line.removeprefix(PREFIX) for line in self.err.splitlines() if line.startswith((PREFIX, "  output: "))]
        return "\n".join(line for line in own if not line.startswith("warning ("))


@dataclass
class Agents:
    """A config and a script in a folder that all hosts share, and the agents started over them."""

    hosts: Hosts
    folder: Path
    port: int
    environ: dict[str, str] = field(default_factory=dict)
    lost_after_s: float | None = None
    """Seconds without a heartbeat before a node is lost, if not the default."""
    ahead_s: dict[str, int] = field(default_factory=dict)
    """By host, how far its CLOCK_MONOTONIC is ahead of this machine's."""
    started: list[subprocess.Popen[str]] = field(default_factory=list)
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def endpoint(self) -> str:
        return f"{self.hosts.names[0]}:{self.port}"

    def write(self, script: str) -> None:
        (self.folder / "job.yaml").write_text(CONFIG, encoding="utf-8")
        (self.folder / "script.py").write_text(script, encoding="utf-8")

    def start(
        self, node: int | str, *words: str, host: str | None = None, endpoint: str | None = None, hosts_file: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start one node's agent, by default on the host with its number."""
        program = ["-m", "launcher"] if self.lost_after_s is None else ["-c", _IMPATIENT.format(self.lost_after_s)]
        place = ["--node-rank", str(node), "--rdzv-endpoint", endpoint or self.endpoint]
        return self.popen(
            host or self.hosts.names[int(node)],
            [sys.executable, *program, "run", "job.yaml", "--log-fold", "off", *place, *words],
            hosts_file=hosts_file,
        )

    def start_all(self, *words: str) -> list[subprocess.Popen[str]]:
        return [self.start(node, *words) for node in range(len(self.hosts.names))]

    def popen(self, host: str, command: Sequence[str], hosts_file: Path | None = None) -> subprocess.Popen[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("RANK", "WORLD_SIZE", "OMP_", "SLURM_"))
        }
        environ = kept | {"PYTHONPATH": str(ROOT), _MARK: self._mark} | self.environ
        ahead_s = self.ahead_s.get(host, 0)
        process = self.hosts.popen(host, command, cwd=self.folder, env=environ, hosts_file=hosts_file, ahead_s=ahead_s)
        self.started.append(process)
        return process

    def finish(self, processes: Sequence[subprocess.Popen[str]], timeout_s: float = 60) -> list[Done]:
        deadline = time.monotonic() + timeout_s
        return [_done(process, deadline - time.monotonic()) for process in processes]

    def run(self, script: str, *words: str, timeout_s: float = 60) -> list[Done]:
        self.write(script)
        return self.finish(self.start_all(*words), timeout_s)

    def wait_for_files(self, pattern: str, count: int) -> list[Path]:
        """Wait until the script's ranks have made so many files of this name."""
        wait_until(lambda: len(list(self.folder.glob(pattern))) >= count, f"{count} of {pattern}", self.started)
        return sorted(self.folder.glob(pattern))

    def left(self) -> list[int]:
        """The processes that still live, of all that the agents have started and of themselves."""
        entry = f"{_MARK}={self._mark}".encode()
        return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if entry in _read(path).split(b"\0")]

    def close(self) -> None:
        """End what the test has not waited for, and hold the agents to leave nothing behind.

        Raises:
            AssertionError: a process has outlived the agents.
        """
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        wait_until(lambda: not self.left(), "the end of all processes", [])


def wait_until(met: Callable[[], bool], what: str, alive: Sequence[subprocess.Popen[str]], timeout_s: float = 30) -> None:
    """Look again and again.

    Raises:
        AssertionError: it does not happen in time, or one of the processes `alive` ends first.
    """
    deadline = time.monotonic() + timeout_s
    while not met():
        ended = [process for process in alive if process.poll() is not None]
        assert not ended or met(), f"no {what}, but {[process.communicate() for process in ended]}"
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.01)


def _done(process: subprocess.Popen[str], timeout_s: float) -> Done:
    out, err = process.communicate(timeout=max(0.1, timeout_s))
    return Done(process.returncode, out, err)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
