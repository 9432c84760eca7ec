"""What a rehearsal counts, beside what gloo ranks of the same job really pass to their groups."""

import json
import subprocess
from collections import Counter

import pytest

from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(240)]

COUNTED = f"""\
import atexit, json, runpy, sys
import torch.distributed as dist

counts = {{}}

def counting(name, tensors_of):
    original = getattr(dist.ProcessGroup, name)
    def call(group, *arguments, **settings):
        count = counts.setdefault(f"{{group.group_desc}} {{name}}", [0, 0])
        count[0] += 1
        count[1] += sum(tensor.nbytes for tensor in tensors_of(*arguments))
        return original(group, *arguments, **settings)
    setattr(dist.ProcessGroup, name, call)

if dist.get_backend() == "gloo":
    counting("allreduce", lambda tensors, *_: tensors)
    counting("send", lambda tensors, *_: tensors)
    atexit.register(lambda: print("COUNTS", json.dumps(counts)))
sys.path.insert(0, {str(ROOT / "examples" / "digits_vlm")!r})
runpy.run_path({str(ROOT / "examples" / "digits_vlm" / "train.py")!r}, run_name="__main__")
"""
SCRIPT_ARGS = ["--", "--steps", "2", "--batch-size", "24", "--micro-batches", "4", "--clip-grad-norm", "1"]
JOINING = (1, 128)
"""Before the script, ranks compare their topologies by one all-reduce, which the script cannot count."""

NAMES = {"all_reduce": "allreduce", "send": "send"}


def command(job, name, *words):
    return subprocess.run(
        [*job.program, name, job.name, *words, *SCRIPT_ARGS],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize(
    "modules",
    [
        pytest.param("vision: {dp: 2}\n  language: {dp: 3}", id="lanes that do not divide"),
        pytest.param("vision: {dp: 1}\n  language: {pp: 2, dp: 2}", id="pipeline"),
    ],
)
def test_calls_and_bytes_are_those_of_real_ranks(job, modules):
    job.config = f"name: small\nlayout: non_colocated\nmodules:\n  {modules}\nentry: {{script: script.py}}\n"
    job.write(COUNTED)
    real = command(job, "run", "--log-fold", "off")
    assert real.returncode == 0, real.stderr
    rehearsed = command(job, "rehearse", "--steps", "0", "--jobs", "2")
    assert rehearsed.returncode == 0, rehearsed.stderr
    found = json.loads((job.folder / "runs" / "small" / "rehearsal" / "rehearsal.json").read_text())
    for kind in found["kinds"]:
        rank = kind["rehearsed_rank"]
        (line,) = [line for line in real.stdout.splitlines() if f" r{rank}] COUNTS " in line]
        expected = {name: tuple(count) for name, count in json.loads(line.partition(" COUNTS ")[2]).items()}
        joined = expected["default_pg allreduce"]
        expected["default_pg allreduce"] = joined[0] + JOINING[0], joined[1] + JOINING[1]
        assert totals(kind["traffic"]) == expected, f"rank {rank}"


def totals(traffic):
    """Calls and bytes by group and method; messages over bridges are those of the world's group."""
    calls, sizes = Counter(), Counter()
    for entry in traffic:
        if entry["operation"] in NAMES:
            group = "default_pg" if entry["group"] == "world" or " -> " in entry["group"] else entry["group"]
            name = f"{group} {NAMES[entry['operation']]}"
            calls[name] += entry["calls"]
            sizes[name] += entry["bytes"]
    return {name: (calls[name], sizes[name]) for name in calls}
