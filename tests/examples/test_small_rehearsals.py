"""Examples, templates and scripts that know torch alone, unchanged in a rehearsal: those that take seconds."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.examples.digits_runs import ROOT

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLES = ROOT / "examples"
SCRIPTS = ROOT / "tests" / "unchanged" / "scripts"
MANY = ["modules.vision.dp=4096", "modules.language.dp=4096"]
POOLS = ["pools={encoders: {nodes: 16, procs_per_node: 8}, llm: {nodes: 16, procs_per_node: 8}}"]
TRAINER = ["--output_dir=trained", "--use_cpu", "--max_steps=1", "--per_device_train_batch_size=4", "--report_to=none"]


def rehearse(config, run_dir, *words, cwd=ROOT):
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "rehearse", str(config), f"run_dir={run_dir}", "--jobs", "2", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    path = run_dir / "rehearsal" / "rehearsal.json"
    return done, json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize(
    ("config", "words", "ranks"),
    [
        pytest.param("own_script/two_modules.yaml", [], 2, id="two modules"),
        pytest.param("own_script/replicas.yaml", ["modules.vision.dp=16", "modules.language.dp=24"], 40, id="replicas"),
        pytest.param("own_script/pipeline.yaml", ["modules.vision.dp=16"], 18, id="pipeline"),
        pytest.param("own_script/checkpoints.yaml", ["modules.vision.dp=16"], 18, id="checkpoints"),
        pytest.param(
            "slurm/two_pools.yaml",
            [*POOLS, "modules.vision.dp=128", "modules.language.dp=128", "--", "--batch-size", "256", "--micro-batches", "1"],
            256,
            id="two pools",
        ),
    ],
)
def test_an_example_is_rehearsed(tmp_path, config, words, ranks):
    done, found = rehearse(EXAMPLES / config, tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert found["world_size"] == ranks


def test_the_first_job_of_init_is_rehearsed_on_thousands_of_ranks(tmp_path):
    template = tmp_path / "plain"
    shutil.copytree(ROOT / "launcher" / "templates" / "plain", template)
    done, found = rehearse(template / "job.yaml", tmp_path / "run", *MANY)
    assert done.returncode == 0, done.stderr
    assert found["world_size"] == 8192
    assert [kind["steps"] for kind in found["kinds"]] == [2] * 6


@pytest.mark.parametrize(("fault", "ending"), [("exception", "ValueError: the labels have 17"), ("kill", "killed by SIGKILL")])
def test_a_fault_of_one_rank_is_found(tmp_path, fault, ending):
    done, found = rehearse(EXAMPLES / "faults" / "job.yaml", tmp_path, "--steps", "0", "--", fault)
    assert done.returncode == 1
    (failure,) = found["failures"]
    assert failure.startswith(f"language.pp1 (rank 3): {ending}")


@pytest.mark.parametrize(
    ("script", "ranks", "args"),
    [
        pytest.param("ddp.py", 2000, [], id="DDP"),
        pytest.param("gpt.py", 2, ["--max_iters=2", "--dtype=bfloat16"], id="GPT"),
        pytest.param("fabric_loop.py", 2, [], id="Fabric"),
        pytest.param("accelerate_loop.py", 2000, [], id="Accelerate"),
        pytest.param("trainer.py", 2000, TRAINER, id="Trainer"),
        pytest.param("titan.py", 2, ["--training.steps", "2"], id="torchtitan"),
        pytest.param("tracker.py", 2000, [], id="tracker"),
        pytest.param("logs.py", 2000, [], id="logging"),
    ],
)
def test_a_script_that_knows_torch_alone_is_rehearsed(tmp_path, script, ranks, args):
    needs = {"fabric_loop.py": "lightning_fabric", "accelerate_loop.py": "accelerate", "trainer.py": "transformers"}
    if script in needs:
        pytest.importorskip(needs[script])
    project = tmp_path / "project"
    shutil.copytree(SCRIPTS, project)
    config = {
        "name": "unchanged",
        "layout": "colocated",
        "modules": {"language": {"dp": ranks}},
        "entry": {"script": script},
        "runtime": {"join": "script"},
    }
    (project / "job.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    done, found = rehearse("job.yaml", tmp_path / "run", "--", *args, cwd=project)
    assert done.returncode == 0, done.stderr
    assert len(found["kinds"]) == min(ranks, 3)
