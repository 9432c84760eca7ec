"""What `mimo-launch submit --to slurm` prints. No SLURM is needed."""

import pytest

from launcher.cli import main
from tests.launcher.schedulers.plans import CONFIG


@pytest.fixture
def _job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    (tmp_path / "job.yaml").write_text(CONFIG)


BOXED = "{container-image: docker://a/b, container-mounts: '/data:/data,/home:/home', no-container-mount-home: true}"


def unknown(text):
    return [line for line in text.splitlines() if "slurm_option" in line or "plugin_option" in line]


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize("place", ["slurm", "slurm.srun"])
def test_options_of_pyxis_are_on_the_line_of_their_pool_without_a_warning(capsys, place):
    words = [f"pools.{pool}.{place}={BOXED}" for pool in ("encoders", "llm")]
    assert main(["submit", "job.yaml", "--to", "slurm", "--dry-run", *words]) == 0
    out, err = capsys.readouterr()
    assert unknown(err) == []
    assert [line.count("--container-image=docker://a/b") for line in out.splitlines() if "--het-group" in line] == [1, 1]
    assert not [line for line in out.splitlines() if line.startswith("#SBATCH") and "container" in line]


@pytest.mark.usefixtures("_job")
@pytest.mark.parametrize("command", ["plan", "submit"])
def test_a_misspelt_option_is_a_warning_of_plan_and_of_a_dry_run(capsys, command):
    words = ["--to", "slurm", "--dry-run"] if command == "submit" else []
    assert main([command, "job.yaml", *words, "pools.llm.slurm.partiton=h100"]) == 0
    out, err = capsys.readouterr()
    (warning,) = unknown(out + err)
    assert warning.endswith("partiton: no known option of sbatch; did you mean 'partition'? It is passed on unchanged")
    assert command == "plan" or "#SBATCH --partiton=h100\n" in out


@pytest.mark.usefixtures("_job")
def test_a_warning_is_printed_before_the_submission_fails(capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "job.yaml", "--to", "slurm", "pools.llm.slurm.partiton=h100"]) == 2
    *_, warning, error = capsys.readouterr().err.splitlines()
    assert "did you mean 'partition'?" in warning
    assert error == "mimo-launch: sbatch: not found on PATH; run this on a machine with SLURM's commands"
