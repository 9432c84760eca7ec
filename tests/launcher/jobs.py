"""Real runs of mimo-launch in tests."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
"""The program becomes process 1, which has all orphans of its own; /proc shows its processes only."""

SMALL = """\
name: small
layout: non_colocated
modules:
  vision: {}
  language: {tp: 2}
entry: {script: script.py}
"""

_SLOW_RANK = re.compile(r"mimo-launch: rank \d+ \(.+\) computes ")


@dataclass
class Job:
    """A folder with a config and a script, and the command that runs them."""

    folder: Path
    config: str = SMALL
    name: str = "job.yaml"
    environ: dict[str, str] = field(default_factory=dict)
    program: list[str] = field(default_factory=lambda: [sys.executable, "-m", "launcher"])

    def write(self, script: str) -> None:
        (self.folder / self.name).write_text(self.config, encoding="utf-8")
        (self.folder / "script.py").write_text(script, encoding="utf-8")

    def command(self, *words: str) -> list[str]:
        # Tests look at each rank's lines.
        return [*self.program, "run", self.name, "--log-fold", "off", *words]

    def start(self, script: str, *words: str) -> subprocess.Popen:
        """Start a run and return while it is going on; the caller ends it."""
        self.write(script)
        return subprocess.Popen(
            # A shell starts what it puts into the background with SIGINT ignored, the test run itself perhaps.
            ["env", "--default-signal=INT,HUP,QUIT", *self.command(*words)],
            cwd=self.folder,
            env=self.whole_environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *words: str, timeout_s: float = 90) -> subprocess.CompletedProcess:
        self.write(script)
        done = subprocess.run(
            self.command(*words),
            cwd=self.folder,
            env=self.whole_environ(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        done.stderr = without_waiting(done.stderr)
        return done

    def whole_environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")}
        return kept | {"PYTHONPATH": str(ROOT)} | self.environ


def without_waiting(text: str) -> str:
    """Without the lines that name the ranks that have not arrived yet, which are late on a machine with other load."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("mimo-launch: waiting for"))


def without_slow_ranks(text: str) -> str:
    """Without the lines about ranks that compute slower than their peers, as they do on a machine with other load."""
    return "".join(line for line in text.splitlines(keepends=True) if not _SLOW_RANK.match(line))


def lines_of(text: str, prefix: str) -> list[str]:
    """The lines behind one rank's prefix, without it."""
    return [line.removeprefix(f"{prefix} ") for line in text.splitlines() if line.startswith(f"{prefix} ")]
