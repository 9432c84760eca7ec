"""The examples, unchanged, in a world of 10,240 ranks on this machine."""

import json
import subprocess
import sys

import pytest

from tests.examples.digits_runs import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

POOLS = [
    "pools={encoders: {nodes: 128, procs_per_node: 8}, text: {nodes: 1152, procs_per_node: 8}}",
    "modules.vision.pool=encoders",
    "modules.vision.dp=1024",
]


@pytest.mark.parametrize(
    ("config", "words", "script_args"),
    [
        pytest.param(
            "digits_vlm/pipeline.yaml",
            ["modules.language={dp: 1152, tp: 4, pp: 2, pool: text}"],
            ["--batch-size", "1280", "--micro-batches", "1"],
            id="digits",
        ),
        pytest.param(
            "hf_vlm/pipeline.yaml",
            ["modules.language={dp: 2304, tp: 2, pp: 2, pool: text}"],
            ["--batch-size", "4608", "--micro-batches", "1"],
            id="hf",
        ),
    ],
)
def test_an_example_is_rehearsed_at_ten_thousand_ranks(tmp_path, config, words, script_args):
    if config.startswith("hf"):
        pytest.importorskip("transformers")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launcher", "rehearse", str(ROOT / "examples" / config), f"run_dir={tmp_path}"),
            *("--jobs", "2", *words, *POOLS, "--", *script_args),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rehearsal" / "rehearsal.json").read_text())
    assert found["world_size"] == sum(kind["rank_count"] for kind in found["kinds"]) == 10_240
    assert [kind["steps"] for kind in found["kinds"]] == [2] * 17
    assert all(kind["objects_not_known"] == 0 for kind in found["kinds"])
