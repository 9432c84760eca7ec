"""`mimo-launch init`: the first config and script."""

import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.config.json_schema import SCHEMA_FILE
from tests.launcher.jobs import lines_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my first job"


def test_init_writes_a_config_and_a_script_and_prints_what_to_do_next(folder, capsys):
    assert main(["init", folder.name]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["job.yaml", "train.py"]
    assert capsys.readouterr().out.splitlines() == [
        "wrote job.yaml and train.py. Next:",
        "  cd 'my first job'",
        "  mimo-launch plan job.yaml    # which rank runs what",
        "  mimo-launch run job.yaml     # train",
    ]


@pytest.mark.parametrize(
    ("template", "example", "config"),
    [("hf", "hf_vlm", "non_colocated.yaml"), ("megatron", "megatron_mimo", "one_node.yaml")],
)
def test_a_template_is_its_example(folder, capsys, template, example, config):
    assert main(["init", folder.name, "--template", template]) == 0
    assert capsys.readouterr().out.startswith("wrote data.py, job.yaml, ")
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    job = written.pop("job.yaml")
    assert written == {path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / example).glob("*.py")}
    assert yaml.safe_load(job) == yaml.safe_load((EXAMPLES / example / config).read_text(encoding="utf-8"))


def test_init_without_a_folder_writes_here(folder, capsys):
    assert main(["init"]) == 0
    assert (folder.parent / "train.py").exists()
    assert "cd" not in capsys.readouterr().out


def test_the_config_names_the_schema_for_editors(folder):
    assert main(["init", folder.name]) == 0
    first_line = (folder / "job.yaml").read_text().partition("\n")[0]
    assert first_line == f"# yaml-language-server: $schema={SCHEMA_FILE.as_uri()}"


@pytest.mark.parametrize("name", ["job.yaml", "train.py"])
def test_init_overwrites_nothing(folder, capsys, name):
    folder.mkdir()
    (folder / name).write_text("mine")
    assert main(["init", folder.name]) == 2
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    assert f"mimo-launch: my first job: {name} exists already; nothing is written" in capsys.readouterr().err


def test_init_lists_all_files_that_exist(folder, capsys):
    assert main(["init", folder.name]) == 0
    assert main(["init", folder.name]) == 2
    assert "job.yaml and train.py exist already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--template", "plian"], "--template plian: no such template; did you mean 'plain'?"),
        (["--template", "x"], "--template x: no such template; there are hf, megatron, plain"),
        (["file/below"], "file/below: cannot be written to: Not a directory"),
    ],
)
def test_init_refuses_what_it_cannot_write(folder, capsys, words, message):
    (folder.parent / "file").touch()
    assert main(["init", *words]) == 2
    assert capsys.readouterr().err == f"mimo-launch: {message}\n"


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_the_first_job_trains_and_a_second_run_continues_it_with_other_sizes(job):
    assert main(["init", str(job.folder)]) == 0

    def lines(prefix, *words):
        command = [*job.program, "run", "job.yaml", *words]
        done = subprocess.run(
            command, cwd=job.folder, env=job.whole_environ(), capture_output=True, text=True, timeout=90, check=False
        )
        assert done.returncode == 0, done.stderr
        return lines_of(done.stdout, prefix)

    first = lines("[language.dp0 r2]")
    assert first[0] == "language, replica 0 of 2: samples 0 to 31 of 64"
    losses = [float(line.rpartition(" ")[2]) for line in first[1:]]
    assert len(losses) == 6
    assert losses[-1] < losses[0] / 5
    second = lines("[language r1]", "modules.vision.dp=1", "modules.language.dp=1", "--", "--steps", "120")
    assert second[1] == "continues after step 100 of 120; run_dir=runs/NAME starts anew"
    assert second[2].startswith("step 120: loss ")
    assert float(second[2].rpartition(" ")[2]) < losses[0] / 5
