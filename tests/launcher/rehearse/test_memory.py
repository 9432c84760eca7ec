"""`mimo-launch rehearse --memory`: the peak of fake tensors, beside that of real ones in the same ranks."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.launcher.jobs import ROOT
from tests.launcher.rehearse.accounts import NEEDS_ACCOUNTS

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(400), NEEDS_ACCOUNTS]

LARGE = Path(__file__).with_name("large_transformer.py")
SMALL_SIZES = "--layers 4 --width 64 --inner-width 128 --heads 4 --key-heads 2 --words 200 --length 16 --micro-batches 3"

TORCH = """\
name: small
layout: colocated
modules: {language: {pp: 2}}
entry: {script: script.py}
runtime: {join: script}
"""
TRANSFORMER = """\
name: small
layout: colocated
modules: {language: {dp: 2, tp: 2, pp: 2}}
entry: {script: script.py}
"""
REPLICATED = """\
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
torch.distributed.init_process_group("gloo")
for settings in ({}, {"gradient_as_bucket_view": True, "bucket_cap_mb": 1}, {"find_unused_parameters": True}):
    layers = nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512), nn.Linear(512, 16)
    model = DistributedDataParallel(nn.Sequential(*layers), **settings)
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        with model.no_sync():
            model(torch.randn(64, 512)).sum().backward()
        nn.functional.mse_loss(model(torch.randn(64, 512)), torch.randn(64, 16)).backward()
        optimizer.step()
        optimizer.zero_grad()
"""
LINEAR = """\
import torch
model = torch.nn.Linear(1024, 1024, bias=False)
optimizer = torch.optim.SGD(model.parameters())
model(torch.ones(1, 1024)).sum().backward()
optimizer.step()
"""


@pytest.fixture
def rehearse(job):
    """Rehearse a config with `--memory`; returns the process that has ended, with its kinds as `kinds`."""

    def run(config, *words, timeout_s=190):
        run_dir = job.folder / ("real" if "--real-tensors" in words else "fake")
        done = subprocess.run(
            [*job.program, "rehearse", str(config), f"run_dir={run_dir}", "--memory", "--jobs", "2", *words],
            cwd=job.folder,
            env=job.whole_environ(),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        path = run_dir / "rehearsal" / "rehearsal.json"
        done.kinds = json.loads(path.read_text())["kinds"] if path.exists() else []
        return done

    return run


def cases():
    yield pytest.param(None, TRANSFORMER, LARGE, SMALL_SIZES, 8, id="tp, fsdp2 and pp: 8 kinds")
    for name, kinds in (("fsdp2", 2), ("tensor_parallel", 2), ("pipelining", 2)):
        yield pytest.param(None, TORCH, ROOT / "tests" / "unchanged" / "scripts" / f"{name}.py", "", kinds, id=name)
    for name, kinds in (("pipeline", 4), ("tensor", 4)):
        yield pytest.param(ROOT / "examples" / "digits_vlm" / f"{name}.yaml", "", None, "", kinds, id=f"digits {name}")


def test_buckets_of_ddp_are_counted(rehearse, job):
    job.config = TORCH.replace("pp: 2", "dp: 3")
    job.write(REPLICATED)
    fake, real = (rehearse(job.name, *flag) for flag in ([], ["--real-tensors"]))
    assert fake.returncode == real.returncode == 0, fake.stderr + real.stderr
    for predicted, measured in zip(fake.kinds, real.kinds, strict=True):
        assert predicted["memory"]["peak_bytes"] == measured["memory"]["peak_bytes"]
        assert predicted["memory"]["communication"] > 0
        reduced = [
            sum(each["bytes"] for each in kind["traffic"] if each["operation"] == "all_reduce")
            for kind in (predicted, measured)
        ]
        assert reduced[0] == reduced[1] > 0


def test_a_model_of_transformers_puts_embeddings_in_their_places(rehearse):
    pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    config = ROOT / "examples" / "hf_vlm" / "pipeline.yaml"
    fake, real = (rehearse(config, *flag, timeout_s=380) for flag in ([], ["--real-tensors"]))
    assert fake.returncode == real.returncode == 0, fake.stderr + real.stderr
    for predicted, measured in zip(fake.kinds, real.kinds, strict=True):
        assert predicted["memory"]["values_assumed"].keys() <= {"item"}
        assert predicted["memory"]["peak_bytes"] == pytest.approx(measured["memory"]["peak_bytes"], rel=0.05)


@pytest.mark.parametrize(("config", "text", "script", "arguments", "count"), list(cases()))
def test_the_predicted_peak_is_that_of_real_tensors(rehearse, job, config, text, script, arguments, count):
    if script is not None:
        job.config = text
        job.write(script.read_text())
    else:
        pytest.importorskip("sklearn")
    fake, real = (rehearse(config or job.name, *flag, "--", *arguments.split()) for flag in ([], ["--real-tensors"]))
    assert fake.returncode == real.returncode == 0, fake.stderr + real.stderr
    assert len(fake.kinds) == len(real.kinds) == count
    for predicted, measured in zip(fake.kinds, real.kinds, strict=True):
        assert predicted["memory"]["peak_bytes"] == pytest.approx(measured["memory"]["peak_bytes"], rel=0.05)
        assert predicted["memory"]["parameters"] == measured["memory"]["parameters"] > 0
        assert predicted["traffic"] == measured["traffic"]


def test_layers_of_a_large_model_take_hundreds_of_mib_on_this_machine(rehearse, job):
    """Two layers of 70 billion parameters' 80, with all words: 3.9 billion parameters over 16 ranks."""
    job.config = TRANSFORMER.replace("dp: 2, tp: 2, pp: 2", "dp: 2, tp: 8")
    job.write(LARGE.read_text())
    done = rehearse(job.name, "--", "--layers", "2", "--micro-batches", "1", timeout_s=380)
    assert done.returncode == 0, done.stderr
    assert len(done.kinds) == 4
    of_a_layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28_672
    of_a_rank = (2 * of_a_layer / 8 + 2 * 128_256 * 8192) / 2
    for kind in done.kinds:
        assert kind["memory"]["optimizer_state"] == pytest.approx(2 * 2 * of_a_rank, rel=0.001)  # two moments in bfloat16
        assert kind["memory"]["peak_bytes"] > 5 * (1 << 30)
        assert kind["peak_bytes"] < 1 << 30


def test_a_kind_that_does_not_fit_its_gpu_is_an_error(rehearse, job):
    job.config = (
        "name: small\nlayout: non_colocated\nmodules: {vision: {pool: a}, language: {dp: 3, pool: b}}\n"
        "pools: {a: {nodes: 1, procs_per_node: 1}, b: {nodes: 1, procs_per_node: 3, resources: {gpu_memory_gib: 0.005}}}\n"
        "entry: {script: script.py}\n"
    )
    job.write(LINEAR)
    done = rehearse(job.name)
    assert done.returncode == 1
    assert done.stderr.count("GiB more than the 0.005 GiB of a GPU") == 3
    assert "parameters (0.004 GiB)" in done.stderr
    assert "most in one module are in " in done.stderr
    assert "3 ranks need more memory than their GPU has" in done.stderr
    assert rehearse(job.name, "pools.b.resources.gpu_memory_gib=0.01").returncode == 0


def test_an_operator_that_needs_values_is_reported_with_its_line(rehearse, job):
    job.write("import torch\nnumbers = torch.randn(300, 300)\ntorch._unique(numbers)\n")
    done = rehearse(job.name)
    assert done.returncode == 1
    assert "whose shape depends on values" in done.stderr
    assert "script.py:3 in <module>" in done.stderr


def test_real_tensors_are_for_memory(job):
    job.write("")
    done = subprocess.run(
        [*job.program, "rehearse", job.name, "--real-tensors"],
        cwd=job.folder,
        env=job.whole_environ(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "--real-tensors is for --memory" in done.stderr
