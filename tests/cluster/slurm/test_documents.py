"""The commands of the guides to SLURM, several nodes and Kubernetes, as a reader would type them, on a real cluster."""

import re

import pytest

from tests.cluster.slurm.lab import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

TEXT = "".join((ROOT / "docs" / "guides" / name).read_text() for name in ("slurm.md", "nodes.md", "kubernetes.md"))
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
MADE_UP = "node0.example"


def is_tested_elsewhere(block):
    """test_job_scripts.py submits the scripts of examples/slurm."""
    return all(line.startswith("sbatch examples/slurm/") for line in block.splitlines())


@pytest.mark.parametrize("block", [block for block in BLOCKS if MADE_UP not in block and not is_tested_elsewhere(block)])
def test_a_block_of_commands_does_what_it_says(lab, block):
    done = lab.run("bash", "-e", "-o", "pipefail", "-c", block, timeout_s=200)
    assert done.stdout


def test_a_host_that_is_made_up_is_the_only_thing_wrong_with_its_command(lab):
    (block,) = [block for block in BLOCKS if MADE_UP in block]
    done = lab.run("bash", "-c", block, check=False)
    assert done.returncode == 2
    assert f"'{MADE_UP}' cannot be resolved on" in done.stderr
