"""A script that trains in several layouts one after another, on the same ranks; for benchmarks/advise.py.

    sleeping_layouts.py '{"folders": [...], "layouts": [{"vision": {"dp": 3, "pp": 1}, ...}, ...], "workload": {...}}'

The workload is that of benchmarks/sleeping_stages.py. What the ranks record of each layout is kept in its folder, which is laid
out as a run directory.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from sleeping_stages import train

import mimo_role
from launcher.run_dir.layout import RunDirLayout
from launcher.trace.recordings import save
from mimo_role import Topology
from mimo_role.host import environ


def main() -> None:
    task = json.loads(sys.argv[1])
    directory = environ.node_dir()
    assert directory is not None
    environ.withdraw([environ.TOPOLOGY])  # the layouts are this script's, not the plan's
    dist.init_process_group("gloo")
    for folder, modules in zip(task["folders"], task["layouts"], strict=True):
        ctx = mimo_role.init(Topology.from_modules(modules))
        train(ctx, task["workload"])
        save(RunDirLayout(Path(folder)), 0, directory, [ctx.rank])
        mimo_role.shutdown()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
