"""Rehearses one job after the other over one fork server, which imports torch once.

    python -m tests.launcher.rehearse.seeded_bugs.rehearsals FOLDER

Each line of the input is a request in JSON, each line of the output what the rehearsal has found.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from launcher.agent.lifecycle import session
from launcher.config.loader import load
from launcher.coordination.node_identity import LocalNode
from launcher.plan.planner import make_plan
from launcher.rehearse import rehearsal
from launcher.rehearse.rehearsed_rank import rehearsed_plan
from mimo_role.host import node_dir

FIRST = """\
name: first
layout: colocated
modules: {language: {}}
entry: {script: first.py}
runtime: {preload: [torch.distributed.fsdp, torch.distributed.tensor.parallel]}
"""


def main(folder: Path) -> None:
    (folder / "first.yaml").write_text(FIRST, encoding="utf-8")
    (folder / "first.py").touch()
    config, _ = load(folder / "first.yaml", [])
    plan = rehearsed_plan(make_plan(config, folder / "first.yaml", [], []))
    with session(plan, LocalNode(), "seeded-bugs") as (node_directory, server):
        server.wait_for_modules(lambda _: None)
        rehearsal.session = lambda *_: nullcontext((node_directory, server))
        for line in sys.stdin:
            found = answer(**json.loads(line))
            print(json.dumps(found), flush=True)
            node_dir.clear(node_directory)


def answer(config: str, overrides: list[str], steps: int, timeout_s: float, tensors: str | None) -> dict[str, Any]:
    """Rehearse a job.

    Args:
        config: the path of its file.
        overrides: of the config.
        steps, timeout_s, tensors: as `rehearse` takes them.
    """
    job, text = load(Path(config), overrides)
    plan = make_plan(job, Path(config), [], overrides)
    found = rehearsal.rehearse(
        plan,
        text,
        jobs=2,
        steps=steps,
        timeout_s=timeout_s,
        tensors=tensors,
        gpu_memory_gib={name: pool.resources.gpu_memory_gib for name, pool in (job.pools or {}).items()},
        say=lambda _: None,
        report=lambda _: None,
    )
    problems = [*found.failures(), *found.call_failures(), *found.memory.too_large()]
    return {"exit_code": found.exit_code, "problems": problems, "summary": found.summary()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
