from importlib.util import find_spec

import pytest
from hypothesis import settings

from launcher.agent import early_server

# Machines differ in speed; the time of one example says nothing.
settings.register_profile("mimo", deadline=None)
settings.load_profile("mimo")


@pytest.fixture(autouse=True)
def early_server_is_awaited(monkeypatch):
    """`mimo-launch run` in this process waits for the end of what it has started, however busy the machine is."""
    monkeypatch.setattr(early_server, "_PATIENCE_S", 60.0)


if find_spec("torch") is None:
    collect_ignore_glob = ["cluster/*", "examples/*", "faults/*", "gpu", "unchanged/*"]
    for folder, names in {
        "launcher/agent": "*",
        "launcher/coordination": "coordinator reports single_node",
        "launcher/logs": "progress_bars reader",
        "launcher/preflight": "check",
        "launcher/rehearse": "rehearse traffic",
        "launcher/rehearse/seeded_bugs": "*",
        "launcher/run_dir": "reader",
        "launcher/schedulers": "*",
        "mimo_role": "context joining rehearsal torch_interop",
        "mimo_role/bridge": "*",
        "mimo_role/checkpoint": "*",
        "mimo_role/data": "*",
        "mimo_role/groups": "groups nccl_order",
        "mimo_role/megatron": "*",
        "mimo_role/monitoring": "diagnostics",
        "mimo_role/pipeline": "gradient_sync schedule",
        "mimo_role/preemption": "notice",
        "mimo_role/rehearsal": "*",
        "mimo_role/training": "*",
    }.items():
        collect_ignore_glob += [f"{folder}/test_{name}.py" for name in names.split()]
