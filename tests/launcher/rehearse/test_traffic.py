"""What a rehearsal counts, beside what gloo ranks of the same job really pass to their groups.

The collectives of real ranks are those of torch's flight recorder, which gloo writes in C++. It does not record messages: these
are counted where they are passed to the group.
"""

import json
import math
import subprocess
from collections import Counter

import pytest

from mimo_role import Topology
from mimo_role.topology.stage_links import stage_links
from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(400)]

COUNTED = f"""\
import atexit, json, runpy, sys
import torch
import torch.distributed as dist
from mimo_role.bridge.message_tags import sender_of

sends = {{}}
send = dist.ProcessGroup.send

def counted_send(group, tensors, to, tag=0):
    number, purpose = sender_of(tag)
    count = sends.setdefault(f"bridge {{number}} {{purpose.name.lower()}}", [0, 0])
    count[0] += 1
    count[1] += sum(tensor.nbytes for tensor in tensors)
    return send(group, tensors, to, tag)

def recorded():
    return json.loads(torch._C._distributed_c10d._dump_fr_trace_json(True, False))["entries"]

objects = []

def apart(function):
    # A rehearsal does not count collectives of Python objects.
    def call(*arguments, **settings):
        before = len(recorded())
        try:
            return function(*arguments, **settings)
        finally:
            objects.extend(range(before, len(recorded())))
    return call

def report():
    keys = ("record_id", "process_group", "profiling_name", "input_sizes", "input_dtypes")
    kept = [[entry[key] for key in keys] for entry in recorded()]
    print("COUNTS", json.dumps({{"sends": sends, "collectives": kept, "objects": objects}}))

def sharded(build_modules):
    from torch.distributed.fsdp import fully_shard
    from mimo_role import set_gradient_sum

    def build(ctx, *arguments):
        modules = build_modules(ctx, *arguments)
        for name, module in modules.items():
            if ctx.topology.grids[name].axis_size("dp") > 1:
                for block in module.blocks.values():
                    set_gradient_sum(fully_shard(block, mesh=ctx.mesh(name)["dp"]))
        return modules

    return build

if dist.get_backend() == "gloo":
    dist.ProcessGroup.send = counted_send
    for name in ("all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"):
        setattr(dist, name, apart(getattr(dist, name)))
    atexit.register(report)
sys.path.insert(0, {str(ROOT / "examples" / "digits_vlm")!r})
if "--sharded" in sys.argv:
    sys.argv.remove("--sharded")
    import parallel
    parallel.build_modules = sharded(parallel.build_modules)
runpy.run_path({str(ROOT / "examples" / "digits_vlm" / "train.py")!r}, run_name="__main__")
"""
SCRIPT_ARGS = ["--", "--steps", "2", "--batch-size", "24", "--micro-batches", "4", "--clip-grad-norm", "1"]

RECORDED = {"reduce_scatter": "all_reduce"}
"""gloo makes a reduce-scatter an all-reduce of the whole tensor. Its recorder has that."""

WIDTHS = {"Float": 4, "Double": 8, "Long": 8, "Int": 4, "Byte": 1, "Bool": 1}


def command(job, name, *words, script_args=()):
    return subprocess.run(
        [*job.program, name, job.name, *words, *SCRIPT_ARGS, *script_args],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(
    ("modules", "layout", "script_args"),
    [
        pytest.param("vision: {dp: 2}\n  language: {dp: 3}", "non_colocated", [], id="lanes that do not divide"),
        pytest.param("vision: {dp: 1}\n  language: {pp: 2, dp: 2}", "non_colocated", [], id="pipeline"),
        pytest.param("vision: {dp: 2}\n  language: {tp: 2}", "non_colocated", [], id="tensor parallelism"),
        pytest.param("vision: {dp: 1}\n  language: {dp: 2}", "non_colocated", ["--sharded"], id="FSDP2"),
        pytest.param("vision: {dp: 2}\n  language: {tp: 2}", "colocated", [], id="colocated, with unlike grids"),
    ],
)
def test_calls_and_bytes_are_those_of_real_ranks(job, modules, layout, script_args):
    job.config = (
        f"name: small\nlayout: {layout}\nmodules:\n  {modules}\nentry: {{script: script.py}}\n"
        'env: {TORCH_FR_BUFFER_SIZE: "100000"}\n'
    )
    job.write(COUNTED)
    real = command(job, "run", "--log-fold", "off", script_args=script_args)
    assert real.returncode == 0, real.stderr
    rehearsed = command(job, "rehearse", "--steps", "0", "--jobs", "2", script_args=script_args)
    assert rehearsed.returncode == 0, rehearsed.stderr
    run_dir = job.folder / "runs" / "small"
    links = stage_links(Topology.from_dict(json.loads((run_dir / "plan.json").read_text())["topology"]))
    found = json.loads((run_dir / "rehearsal" / "rehearsal.json").read_text())
    for kind in found["kinds"]:
        rank = kind["rehearsed_rank"]
        (line,) = [line for line in real.stdout.splitlines() if f" r{rank}] COUNTS " in line]
        assert totals(kind["traffic"]) == counted(json.loads(line.partition(" COUNTS ")[2]), links), f"rank {rank}"


def totals(traffic):
    """Calls and bytes by group or bridge, and operation as gloo records it."""
    return added_up(
        (entry["group"], RECORDED.get(entry["operation"], entry["operation"]), entry["calls"], entry["bytes"])
        for entry in traffic
    )


def counted(real, links):
    """The same of a real rank."""
    assert [entry[0] for entry in real["collectives"]] == list(range(len(real["collectives"]))), "the recorder has lost some"
    collectives = [
        (
            {"default_pg": "world"}.get(description, description),
            name.removeprefix("gloo:"),
            1,
            sum(math.prod(size) * WIDTHS[dtype] for size, dtype in zip(sizes, dtypes, strict=True)),
        )
        for number, (_, description), name, sizes, dtypes in real["collectives"]
        if number not in real["objects"]
    ]
    sends = []
    for name, (calls, size) in real["sends"].items():
        _, number, purpose = name.split()
        tensor, link = divmod(int(number), len(links))
        assert tensor == 0
        sends.append((f"{links[link]}, {purpose.replace('_', ' ')}", "send", calls, size))
    return added_up([*collectives, *sends])


def added_up(entries):
    calls, sizes = Counter(), Counter()
    for group, operation, count, size in entries:
        calls[group, operation] += count
        sizes[group, operation] += size
    return {key: (calls[key], sizes[key]) for key in calls}
