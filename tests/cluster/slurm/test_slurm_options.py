"""Options of sbatch, of srun and of a plugin (tests/cluster/lab/plugin.c), on a real cluster."""

import json
import re

import pytest

from tests.cluster.slurm.jobs import Submitted
from tests.cluster.slurm.lab import BIN, ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PRINTS = """
import json, os
names = ("LAB_IMAGE", "LAB_MODE", "LAB_NO_HOME", "PROLOG", "STARTED_BY")
print(json.dumps({name: os.environ.get(name) for name in names} | {"rank": int(os.environ["RANK"]), "cwd": os.getcwd()}))
"""

NASTY = "a b\"c'd\\e$HOME`x`,é;#%j\t*"


@pytest.fixture
def job(lab, tmp_path):
    return Submitted(lab, tmp_path / 'it\'s a $folder, "quoted"')


def printed(job: Submitted, *names: str) -> list[tuple[str | None, ...]]:
    """Values that each rank has printed, in the order of the ranks."""
    lines = job.mimo("logs", "runs/job").stdout.splitlines()
    found = [json.loads(line.partition("] ")[2]) for line in lines if '{"' in line]
    return [tuple(values[name] for name in names) for values in sorted(found, key=lambda values: values["rank"])]


def test_options_of_a_plugin_reach_the_ranks_by_sbatch_and_by_srun(job):
    image = f"{NASTY}\nsecond line"
    boxed = {"container-image": image, "no-container-mount-home": True}
    of_encoders = json.dumps({"lab_mode": NASTY} | boxed)
    of_llm = json.dumps({"lab_mode": NASTY, "srun": boxed})
    job.submit(PRINTS, f"pools.encoders.slurm={of_encoders}", f"pools.llm.slurm={of_llm}")
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    names = ("LAB_IMAGE", "LAB_MODE", "LAB_NO_HOME", "cwd")
    assert printed(job, *names) == [(image, NASTY, "given", str(job.folder))] * 4


def test_an_option_of_srun_holds_for_its_pool(job):
    job.folder.mkdir(parents=True)
    words = []
    for pool in ("encoders", "llm"):
        prolog = job.folder / f"{pool}' prolog.sh"
        prolog.write_text(f"#!/bin/sh\necho export PROLOG={pool}\n")
        prolog.chmod(0o755)
        words.append(f"pools.{pool}.slurm.srun.task-prolog={json.dumps(str(prolog))}")
    job.submit(PRINTS, *words)
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    assert printed(job, "PROLOG") == [("encoders",), ("encoders",), ("llm",), ("llm",)]


def test_a_container_runs_the_mimo_launch_of_its_image_in_another_folder(job, tmp_path):
    program = tmp_path / "image" / "bin" / "mimo-launch"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nSTARTED_BY=image exec '{BIN}/mimo-launch' \"$@\"\n")
    program.chmod(0o755)
    boxed = json.dumps({"container-image": str(tmp_path / "image"), "container-workdir": str(tmp_path)})
    job.submit(PRINTS, f"pools.encoders.slurm={boxed}", f"pools.llm.slurm={boxed}")
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    assert printed(job, "STARTED_BY", "cwd") == [("image", str(tmp_path))] * 4


def test_slurm_applies_one_value_of_a_plugins_option_to_all_pools_which_is_a_warning(job):
    job.folder.mkdir(parents=True)
    (job.folder / "job.yaml").write_text(job.config)
    (job.folder / "script.py").write_text(PRINTS)
    differ = [f"pools.{pool}.slurm={{container-image: /{pool}, container-workdir: /tmp}}" for pool in ("encoders", "llm")]
    done = job.mimo("submit", "job.yaml", "--to", "slurm", *differ)
    assert (
        "warning (plugin_option_differs): slurm: container-image is /encoders in pools.encoders, /llm in pools.llm;"
        in done.stderr
    )
    job.id = done.stdout.strip()
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    assert printed(job, "LAB_IMAGE") == [("/llm",)] * 4


def test_a_misspelt_option_is_a_warning_before_sbatch_refuses_it(job):
    job.folder.mkdir(parents=True)
    (job.folder / "job.yaml").write_text(job.config)
    (job.folder / "script.py").touch()
    done = job.mimo("submit", "job.yaml", "--to", "slurm", "pools.llm.slurm.partiton=lab", check=False)
    warning, error = [line for line in done.stderr.splitlines() if "_across_" not in line]
    assert (done.returncode, done.stdout) == (2, "")
    assert warning.startswith(
        "mimo-launch: warning (unknown_slurm_option): pools.llm.slurm.partiton: no known option of sbatch; did you"
    )
    assert error.startswith("mimo-launch: sbatch failed for ")
    assert "sbatch: unrecognized option '--partiton=lab'" in error


def test_pools_in_different_containers_run_by_an_srun_each_as_the_guide_has_it(job):
    (commands,) = re.findall(r"^```bash\n(.*?)^```", (ROOT / "docs/guides/slurm.md").read_text(), re.DOTALL | re.MULTILINE)
    options = ["--output=out.txt --nodes=1 --ntasks-per-node=1", "hetjob", "--nodes=2 --ntasks-per-node=1"]
    job.folder.mkdir(parents=True)
    (job.folder / "job.yaml").write_text(job.config)
    (job.folder / "script.py").write_text(PRINTS)
    (job.folder / "own.sbatch").write_text("\n".join(["#!/bin/bash", *(f"#SBATCH {line}" for line in options), commands]))
    job.id = job.lab.sbatch(f"--chdir={job.folder}", str(job.folder / "own.sbatch"))
    assert job.wait() == ["COMPLETED", "COMPLETED"], (job.folder / "out.txt").read_text()
    assert printed(job, "LAB_IMAGE") == [("/images/encoders.sqsh",)] * 2 + [("/images/llm.sqsh",)] * 2
