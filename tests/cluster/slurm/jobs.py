"""Jobs that tests submit by mimo-launch."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.cluster.slurm.lab import Lab

CONFIG = """\
name: job
layout: non_colocated
modules:
  vision:   {dp: 2, pool: encoders}
  language: {tp: 2, pool: llm}
pools:
  encoders: {nodes: 1, procs_per_node: 2}
  llm:      {nodes: 2, procs_per_node: 1}
entry: {script: script.py}
runtime: {timeout_s: 60}
run_dir: runs/job
"""


@dataclass
class Submitted:
    """A folder of the user's with a config and a script, and the job that was submitted from it."""

    lab: Lab
    folder: Path
    config: str = CONFIG
    id: str = ""
    words: list[str] = field(default_factory=list)

    def submit(self, script: str | None, *words: str, env: dict[str, str] | None = None) -> "Submitted":
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "job.yaml").write_text(self.config, encoding="utf-8")
        if script is not None:
            (self.folder / "script.py").write_text(script, encoding="utf-8")
        done = self.mimo("submit", "job.yaml", "--to", "slurm", *words, env=env)
        self.id = done.stdout.strip()
        return self

    def mimo(self, *words: str, env: dict[str, str] | None = None, check: bool = True, timeout_s: float = 90):
        """Run mimo-launch in the user's folder, on the login node."""
        return Lab(self.lab.conf, self.folder, self.lab.path).run(
            "mimo-launch", *words, env=env, check=check, timeout_s=timeout_s
        )

    def wait(self, **more) -> list[str]:
        return self.lab.wait(self.id, **more)

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "job"

    def output(self) -> str:
        return "".join(path.read_text() for path in self.run_dir.glob(f"jobs/*/slurm-{self.id}.out"))

    def metrics(self) -> dict[int, float]:
        """Each step's loss, as far as it has been written."""
        path = self.run_dir / "losses.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return {record["step"]: record["loss"] for record in records if "loss" in record}
