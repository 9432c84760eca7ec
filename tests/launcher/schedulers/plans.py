"""Plans and the requests to submit them, without a file system."""

from pathlib import Path

from launcher.config.loader import load
from launcher.plan.planner import make_plan
from launcher.schedulers.submit import Request

CONFIG = """\
name: vlm
layout: non_colocated
modules:
  vision:   {dp: 2, pool: encoders}
  language: {tp: 2, dp: 2, pool: llm}
pools:
  encoders: {nodes: 1, procs_per_node: 2}
  llm:      {nodes: 1, procs_per_node: 4}
entry: {script: train.py}
run_dir: runs/vlm
"""


def request(folder: Path, *overrides: str, config: str = CONFIG, to: str = "slurm", **more) -> Request:
    """What `mimo-launch submit` makes of a config in a folder."""
    (folder / "job.yaml").write_text(config, encoding="utf-8")
    (folder / "train.py").touch()
    loaded, text = load(folder / "job.yaml", list(overrides))
    plan = make_plan(loaded, folder / "job.yaml", ())
    return Request(plan=plan, pools=loaded.pools or {}, config_text=text, to=to, **more)
