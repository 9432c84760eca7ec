"""`mimo-launch rehearse`: the user's script, once for each kind of rank."""

import re
import subprocess

import pytest

from tests.launcher.jobs import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(180)]

AT_SCALE = ["modules.vision.dp=1024", "modules.language.dp=2304"]

BRIDGED = """\
import sys
import torch, mimo_role
ctx = mimo_role.current()
width = {"vision": 4, "language": 4}
batch = 4096
for step in range(100):
    ctx.step(step)
    vision, stages = ctx.bridge("vision"), ctx.bridge("language", stage=0)
    lane, lanes = ctx.lane(*ctx.role.modules)
    rows = (lane + 1) * batch // lanes - lane * batch // lanes
    if "vision" in ctx.role.modules:
        given = torch.ones(rows, 3, width["vision"], requires_grad=True)
        vision(given, batch_size=batch).backward()
        assert given.grad.shape == given.shape
    elif ctx.role.is_first_stage("language"):
        hidden = vision(batch_size=batch, sample_shape=(3, width["language"]), dtype=torch.float32)
        assert hidden.shape == (rows, 3, 4)
        stages(hidden * 2, batch_size=batch).backward()
    else:
        stages(batch_size=batch, sample_shape=(3, 4), dtype=torch.float32).sum().backward()
"""


def test_each_kind_runs_the_script_and_ends_after_the_steps(rehearse, job):
    done = rehearse(BRIDGED, "--steps", "3")
    assert done.returncode == 0, done.stderr
    assert "6 ranks are 6 kinds" in done.stderr
    assert re.search(r"none failed in \d+ steps?", done.stderr)
    assert [kind["steps"] for kind in done.found["kinds"]] == [3] * 6
    assert [kind["rehearsed_rank"] for kind in done.found["kinds"]] == [0, 1, 2, 3, 4, 5]
    (sent,) = [entry for entry in done.found["kinds"][0]["traffic"] if entry["operation"] == "send"]
    assert sent["group"] == "vision stage 0 -> language stage 0, forward"
    assert sent["bytes"] == 3 * 2048 * 3 * 4 * 4  # each element once: tp ranks divide them
    logs = job.folder / "runs" / "small" / "rehearsal" / "logs" / "attempt0"
    assert [(logs / f"rank{rank}.stderr.log").read_text() for rank in range(6)] == [""] * 6
    report = subprocess.run(
        [*job.program, "report", "runs/small"],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert report.stdout.startswith("small: rehearsal done: 6 ranks are 6 kinds, ")
    assert f"\n{done.stdout}" in report.stdout


def test_ten_thousand_ranks_are_rehearsed_in_their_real_places(rehearse, job):
    script = BRIDGED + 'print("not reached")\n'
    check = "import torch.distributed as dist\nassert dist.get_world_size() == 10240\nassert dist.get_rank() == ctx.rank\n"
    done = rehearse(script.replace("width =", f"{check}width ="), *AT_SCALE, "--steps", "1")
    assert done.returncode == 0, done.stderr
    assert done.found["world_size"] == 10_240
    assert sum(kind["rank_count"] for kind in done.found["kinds"]) == 10_240
    assert "not reached" not in done.stdout
    recorded = {path.name for path in (job.folder / "runs/small/rehearsal/logs/attempt0").glob("*.recording.gz")}
    assert recorded == {f"rank{kind['rehearsed_rank']}.recording.gz" for kind in done.found["kinds"]}
    refused = subprocess.run(
        [*job.program, "advise", "runs/small"],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    where = job.folder / "runs" / "small" / "rehearsal"
    assert refused.stderr == f"mimo-launch: runs/small: nothing has run here; the job was rehearsed: {where}\n"


def test_a_failure_names_all_ranks_that_it_would_hit(rehearse):
    script = BRIDGED + "".join(
        [
            "    if ctx.role.is_last_stage('language') and ctx.role.has_language_module:\n",
            "        raise ValueError('no head here')\n",
        ]
    )
    done = rehearse(script, *AT_SCALE)
    assert done.returncode == 1
    assert "mimo-launch: language.pp1 (4,608 ranks, 5632-10239): ValueError: no head here" in done.stderr
    assert "script.py:" in done.stderr
    assert "rehearsal/logs/attempt0/rank" in done.stderr
    (failure,) = done.found["failures"]
    assert failure.startswith("language.pp1 (4,608 ranks, 5632-10239): ValueError")


def test_a_role_that_cannot_import_something_is_found(rehearse):
    done = rehearse("import mimo_role\nif mimo_role.current().role.has_language_module: import not_installed_here\n")
    assert done.returncode == 1
    assert (
        "language.pp0 and language.pp1 (4 ranks, 2-5): ModuleNotFoundError: No module named 'not_installed_here'" in done.stderr
    )


def test_modules_that_disagree_on_a_shape_are_found_before_they_meet(rehearse):
    done = rehearse(BRIDGED.replace('"vision": 4', '"vision": 8'))
    assert done.returncode == 1
    assert "language.pp0 (2 ranks, 2-3): mimo_role.errors.BridgeError" in done.stderr
    assert "expects samples of torch.float32 [3, 4] in batch 0" in done.stderr
    assert "has samples of torch.float32 [3, 8]" in done.stderr


def test_a_batch_that_the_lanes_of_one_module_do_not_divide_is_found(rehearse):
    script = (
        "import mimo_role\nctx = mimo_role.current()\n"
        "assert ctx.role.has_language_module or 1000 % ctx.lane('vision').lanes == 0\n"
    )
    done = rehearse(script, "modules.vision.dp=3")
    assert done.returncode == 1
    assert "vision (3 ranks, 0-2): AssertionError" in done.stderr


def test_only_the_kind_that_fails_is_named(rehearse):
    script = (
        "import mimo_role\nctx = mimo_role.current()\nassert ctx.role.has_language_module or ctx.lane('vision').number == 0\n"
    )
    done = rehearse(script, "modules.vision.dp=3")
    assert "2 of 3 kinds of vision (2 ranks, 1-2): AssertionError" in done.stderr


def test_kinds_that_call_other_operations_over_a_group_are_named_with_their_lines(rehearse):
    done = rehearse(BRIDGED + "    if ctx.role.has_language_module:\n        torch.distributed.barrier()\n", *AT_SCALE)
    assert done.returncode == 1
    who = "language.pp0 and language.pp1 (9,216 ranks, 1024-10239)"
    assert (
        "mimo-launch: vision (1,024 ranks, 0-1023): nothing as call 1 over world (10,240 ranks), barrier() on " in done.stderr
    )
    line = BRIDGED.count("\n") + 2
    assert f"  {who}: barrier()\n    script.py:{line} in <module>\n      torch.distributed.barrier()\n" in done.stderr
    assert "the ranks of 1 group do not call the same" in done.stderr
    assert "none failed" not in done.stderr
    (failure,) = done.found["call_failures"]
    assert failure.startswith("vision (1,024 ranks, 0-1023)")


def test_a_kind_that_takes_too_long_is_ended_and_reported_with_its_stack(rehearse):
    script = "import mimo_role\nif 'vision' in mimo_role.current().role.modules:\n    while True: pass\n"
    done = rehearse(script, "--timeout-s", "4")
    assert done.returncode == 124
    assert "mimo-launch: vision (2 ranks, 0-1): TimeoutError: the script has not ended after 4 s (--timeout-s)" in done.stderr
    assert "script.py:3 in <module>" in done.stderr
    assert "4 ranks" not in done.stderr.splitlines()[-1]


def test_the_exit_code_is_the_scripts(rehearse):
    assert rehearse("import sys; sys.exit(3)").returncode == 3
    assert rehearse("import sys, mimo_role; sys.exit(mimo_role.REQUEUE_EXIT_CODE)").returncode == 75


def test_a_first_rank_decides_for_the_others(rehearse):
    script = (
        "import torch.distributed as dist\n"
        "name = ['chosen by rank 0'] if dist.get_rank() == 0 else [None]\n"
        "dist.broadcast_object_list(name, src=0)\n"
        "assert name == ['chosen by rank 0']\n"
    )
    done = rehearse(script)
    assert done.returncode == 0, done.stderr
    assert all(kind["objects_not_known"] == 0 for kind in done.found["kinds"])


def test_a_first_rank_decides_by_a_small_tensor_how_often_all_others_call_something(rehearse):
    script = (
        "import torch, mimo_role, torch.distributed as dist\nctx = mimo_role.current()\n"
        "batches = torch.tensor([5 if ctx.rank == 0 else 0])\ndist.broadcast(batches, src=0)\n"
        "assert batches.item() == 5\nfor _ in range(batches.item()):\n    dist.barrier()\n"
        "group = ctx.group(next(iter(ctx.role.modules)), 'dp')\n"
        "rows = torch.tensor([3 if dist.get_rank(group) == 0 else 0])\n"
        "dist.broadcast(rows, group=group, group_src=0)\nassert rows.item() == 3\n"
    )
    done = rehearse(script, *AT_SCALE)
    assert done.returncode == 0, done.stderr


def test_checkpoints_are_saved_and_loaded_apart_from_the_jobs_own(rehearse, job):
    script = """\
import torch, mimo_role
from mimo_role import checkpoint
ctx = mimo_role.current()
model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ctx.role.modules})
folder = ctx.run_dir / "checkpoints"
assert checkpoint.load(ctx, folder, model) is None
checkpoint.save(ctx, folder, 1, model)
before = {name: value.clone() for name, value in model.state_dict().items()}
with torch.no_grad():
    for parameter in model.parameters():
        parameter.zero_()
assert checkpoint.load(ctx, folder, model).step == 1
assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
"""
    own = job.folder / "runs" / "small" / "checkpoints"
    own.mkdir(parents=True)
    done = rehearse(script, "modules.language={pp: 2}")
    assert done.returncode == 0, done.stderr
    assert not any(own.iterdir())


DESCRIBED = """\
import torch, mimo_role
from mimo_role import ActivationSpec
from mimo_role.resharding.samples import Samples
ctx = mimo_role.current()
bridge, batch = ctx.bridge("vision"), 4096
for step in range(3):
    ctx.step(step)
    if bridge.is_sender:
        spec = bridge.exchange_spec(ActivationSpec.of(batch, (3 + step, WIDTH), torch.bfloat16))
        bridge.send_forward(torch.ones(batch // ctx.lane("vision").lanes, 3 + step, WIDTH, dtype=spec.dtype), spec).wait()
    elif bridge.is_receiver:
        spec = bridge.exchange_spec(samples=Samples(batch))
        assert spec.samples.tokens == 3 + step
        received = bridge.recv_forward(spec).wait()
        assert received.dtype == torch.bfloat16
        assert received.shape[1:] == (3 + step, 8), received.shape
"""


def test_receivers_get_what_only_senders_know_of_a_batch(rehearse):
    done = rehearse(DESCRIBED.replace("WIDTH", "8"), *AT_SCALE, "--steps", "0")
    assert done.returncode == 0, done.stderr
    assert [kind["steps"] for kind in done.found["kinds"]] == [3] * len(done.found["kinds"])


def test_what_was_described_by_one_module_and_does_not_fit_another_is_found(rehearse):
    done = rehearse(DESCRIBED.replace("WIDTH", "4"))
    assert done.returncode == 1
    assert "language.pp0 (2 ranks, 2-3): AssertionError" in done.stderr


def test_a_batch_that_no_sender_has_described_is_named(rehearse):
    done = rehearse(DESCRIBED.replace("WIDTH", "8").replace("if bridge.is_sender:", "if bridge.is_sender and step < 1:"))
    assert done.returncode == 1
    assert "language.pp0 (2 ranks, 2-3): mimo_role.errors.BridgeError" in done.stderr
    assert "exchange_spec() number 1 has been called in no rehearsal of a rank that sends over this bridge" in done.stderr


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "tensor_parallel", "pipelining"])
def test_scripts_that_know_torch_alone_are_rehearsed_unchanged(rehearse, job, name):
    job.config = (
        "name: small\nlayout: colocated\nmodules:\n  language: {pp: 2}\nentry: {script: script.py}\nruntime: {join: script}\n"
    )
    done = rehearse((ROOT / "tests" / "unchanged" / "scripts" / f"{name}.py").read_text())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["entry={command: [bash, -c, 'true']}"], "entry.command cannot be rehearsed"),
        (["--steps", "-1"], "--steps 0 or more"),
        (["--timeout-s", "nan"], "--timeout-s"),
        (["modules.vision.dp=0"], "modules.vision.dp"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(rehearse, words, message):
    done = rehearse("", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_smallest_real_job_with_every_kind_is_printed(rehearse, job):
    pools = ["pools={a: {nodes: 1290, procs_per_node: 8}}"]
    done = rehearse("", *AT_SCALE, *pools, "--shrink")
    assert (
        done.stdout
        == "modules.vision.dp=3 modules.language.dp=4 pools=null modules.vision.pool=null modules.language.pool=null\n"
    )
    planned = subprocess.run(
        [*job.program, "plan", job.name, *done.stdout.split()],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    assert "19 ranks" in planned.stdout


ONE_RANK = """\
name: small
layout: colocated
modules: {language: {}}
entry: {script: script.py}
"""


def test_one_rank_is_one_kind(rehearse, job):
    job.config = ONE_RANK
    done = rehearse("pass\n")
    assert done.found["summary"].startswith("1 rank is 1 kind, rehearsed in ")
    done = rehearse("raise ValueError\n")
    assert done.found["summary"].endswith("; 1 rank would fail")
    assert done.found["summary"] in done.stderr


TORN = """\
name: small
layout: non_colocated
modules: {vision: {dp: 2, pool: a}, language: {tp: 4, pool: b}}
pools: {a: {nodes: 1, procs_per_node: 2}, b: {nodes: 2, procs_per_node: 2}}
entry: {script: script.py}
"""
IN_EVERY_LAYER = """\
import torch
import torch.distributed as dist
import mimo_role
ctx = mimo_role.current()
for step in range(3):
    ctx.step(step)
    if "language" in ctx.role.modules:
        for layer in range(4):
            dist.all_reduce(torch.ones(1 << 18), group=ctx.group("language", "tp"))
"""


def test_plan_shows_the_bytes_that_the_rehearsal_of_the_same_plan_has_counted(rehearse, job):
    job.config = TORN
    done = rehearse(IN_EVERY_LAYER, "--traffic")
    assert done.returncode == 0, done.stderr
    # 4 MiB a rank, 1.5 times of which it sends, over two of the four connections of the ring to another node.
    assert re.search(r"language +language\.tp +4 +all_reduce +4 +4\.000 +6\.000 +3\.000 +0\.000", done.stdout)
    assert done.found["step_traffic"]["language.tp"] == {
        "sent_bytes": 24 << 20,
        "across_nodes_bytes": 12 << 20,
        "across_pools_bytes": 0,
    }

    def plan(*words):
        shown = subprocess.run(
            [*job.program, "plan", job.name, *words],
            cwd=job.folder,
            env=job.whole_environ(),
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return shown.stdout

    assert "in every layer; 12.0 MiB per step cross nodes, by the rehearsal in the run directory" in plan()
    assert "per step" not in plan("modules.language.dp=1", "env={A: b}")
