"""Job scripts as text, and that any name in them stays data. No SLURM is needed."""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import ConfigError
from launcher.schedulers.sbatch_script import Component, SbatchJob, component, quote_directive, script_of
from launcher.schedulers.submit import dry_run
from tests.launcher.schedulers.plans import request

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).parents[3]
SHELLCHECK = Path(sys.executable).with_name("shellcheck")

THOUSANDS = [
    "modules.vision.dp=1024",
    "modules.language={tp: 8, pp: 8, dp: 144}",
    "pools.encoders={nodes: 128, procs_per_node: 8, slurm: {partition: l40s, account: vlm, gres: 'gpu:8', exclusive: true}}",
    "pools.llm={nodes: 1152, procs_per_node: 8, slurm: {partition: h100, account: vlm, gres: 'gpu:8', exclusive: true}}",
]

CASES = [
    pytest.param("one_pool", ["modules.vision.pool=llm", "pools.llm.procs_per_node=6"], id="one pool"),
    pytest.param("two_pools", [], id="two pools"),
    pytest.param("thousands", THOUSANDS, id="1,280 nodes"),
    pytest.param(
        "options",
        [
            'name=it\'s a "name" of $HOME',
            'pools.llm.slurm={partition: "a,b", comment: "x #y", exclude: [n1, n2], time: "2-0", no-requeue: true}',
            "pools.llm.slurm.mail-type=END",
            "pools.encoders.slurm={cpus-per-gpu: 4, gpus-per-node: 2, signal: USR1@300}",
            "env={LIST: 'a,b c', QUOTE: \"it's\", not-a-name: x}",
            "runtime.warning_s=300",
        ],
        id="options",
    ),
    pytest.param(
        "step_options",
        [
            'pools.encoders.slurm={gpu_cmode: shared, srun: {label: true, task-prolog: "/home/me/it\'s a prolog.sh"}}',
            "pools.llm.slurm={partition: h100, container-image: /images/a b.sqsh, container-mounts: ['/data:/data', '/home']}",
            "pools.llm.slurm.no-container-mount-home=true",
            "pools.llm.slurm.srun={cpu-bind: verbose, container-env: $HOME, mpi: null, container-remap-root: false}",
        ],
        id="step options",
    ),
]

PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=40)
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def script(tmp_path, monkeypatch, *overrides):
    monkeypatch.chdir(tmp_path)
    text = dry_run(request(tmp_path, *overrides))
    program = Path(sys.executable).with_name("mimo-launch")
    return text.replace(str(tmp_path), "/home/me").replace(shlex.quote(str(program)), "/venv/bin/mimo-launch")


@pytest.mark.parametrize(("name", "overrides"), CASES)
def test_the_script_equals_the_golden_file(name, overrides, tmp_path, monkeypatch):
    assert script(tmp_path, monkeypatch, *overrides) == (GOLDEN / f"{name}.sbatch").read_text()


SCRIPTS = [*GOLDEN.glob("*.sbatch"), *ROOT.glob("examples/slurm/*.sbatch"), *ROOT.glob("tests/cluster/lab/*.sh")]


@pytest.mark.parametrize("path", sorted(SCRIPTS), ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
    done = subprocess.run([SHELLCHECK, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_script_for_1280_nodes_has_two_components_and_stays_small(tmp_path, monkeypatch):
    text = script(tmp_path, monkeypatch, *THOUSANDS)
    assert text.count("#SBATCH hetjob") == 1
    assert [line for line in text.splitlines() if "--nodes=" in line and line.startswith("#SBATCH")] == [
        "#SBATCH --nodes=128",
        "#SBATCH --nodes=1152",
    ]
    assert len(text.encode()) < 10 << 10


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    script(tmp_path, monkeypatch)
    assert not (tmp_path / "runs").exists()


def sbatch_reads(directive: str) -> list[str]:
    """An #SBATCH line as Slurm 22.05 parses it: blanks separate, quotes join, a backslash escapes, # comments."""
    words, word, quote, position = [], None, None, 0
    while position < len(directive):
        character = directive[position]
        position += 1
        if character == "\\" and position < len(directive):
            word = (word or "") + directive[position]
            position += 1
        elif quote is not None and character == quote:
            quote = None
        elif quote is None and character in "\"'":
            quote, word = character, word or ""
        elif quote is None and character in " \t":
            words, word = ([*words, word], None) if word is not None else (words, None)
        elif quote is None and character == "#":
            break
        else:
            word = (word or "") + character
    return words if word is None else [*words, word]


@given(PRINTABLE)
def test_sbatch_reads_a_quoted_value_unchanged(value):
    assert sbatch_reads(f"--comment={quote_directive(value)}") == [f"--comment={value}"]


@given(name=ANY, title=ANY, cwd=ANY, value=ANY, option=ANY, words=st.lists(ANY, min_size=1, max_size=4))
def test_names_that_look_like_code_stay_data_in_a_real_bash(name, title, cwd, value, option, words):
    """srun prints its arguments, the directory and a variable; cd is a function, since the directory does not exist."""
    parts = (
        Component(pool="p", nodes=2, cpus_per_task="4", options={}, step_options={"a": option, "b": None}),
        Component(pool="q", nodes=1, cpus_per_task=None, options={}, step_options={"cpu-bind": option}),
    )
    text = script_of(SbatchJob(name=name, title=title, components=parts, command=tuple(words), cwd=cwd, env={"ODD": value}))
    tools = """
cd() { cwd=$1; }
srun() { printf '%s\\0' "$cwd" "$ODD" "$@"; return 75; }
scontrol() { printf '%s\\0' scontrol "$@"; }
"""
    done = subprocess.run(
        ["bash", "-c", tools + text], env={"SLURM_JOB_ID": "12"}, capture_output=True, timeout=20, check=False
    )
    printed = [word.decode() for word in done.stdout.split(b"\0")[:-1]]
    assert (done.returncode, done.stderr) == (75, b"")
    assert printed == [
        *(cwd, value, "--kill-on-bad-exit=1"),
        *("--het-group=0", "--nodes=2", "--ntasks=2", "--cpus-per-task=4", "--cpu-bind=none", f"--a={option}", "--b"),
        *(*words, ":"),
        *("--het-group=1", "--nodes=1", "--ntasks=1", f"--cpu-bind={option}", *words),
        *("scontrol", "requeue", "12"),
    ]


@given(ANY, ANY)
def test_no_name_or_title_becomes_a_line_of_its_own(name, title):
    part = Component(pool="p", nodes=1, cpus_per_task="1", options={})
    text = script_of(SbatchJob(name=name, title=title, components=(part,), command=("x",), cwd="/", env={}))
    head = text.split("\n\n")[0].splitlines()
    assert len(head) == 3 + 6
    assert all(line.startswith("#") for line in head)


def test_a_job_that_cannot_be_requeued_prints_a_message_and_keeps_its_exit_code():
    part = Component(pool="p", nodes=1, cpus_per_task="1", options={})
    text = script_of(SbatchJob(name="n", title="t", components=(part,), command=("x",), cwd="/", env={}))
    tools = "srun() { return 75; }\nscontrol() { return 127; }\n"
    done = subprocess.run(
        ["bash", "-c", tools + text], env={"SLURM_JOB_ID": "12"}, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 75
    assert "mimo-launch: cannot requeue job 12 from" in done.stderr


def test_a_time_limit_shorter_than_the_warning_is_refused():
    with pytest.raises(
        ConfigError, match=r"pools.p.slurm.time=2: 120 s, but the ranks are warned runtime.warning_s=120 s before"
    ):
        component("p", 1, 4, {"time": 2}, 120.0)
    assert component("p", 1, 4, {"time": 2, "signal": "USR1@10"}, 120.0).options["signal"] == "USR1@10"
    assert component("p", 1, 4, {"time": 0}, 120.0).options["signal"] == "USR1@120"


def test_times_that_yaml_would_read_as_numbers_stay_as_written(tmp_path, monkeypatch):
    overrides = ["pools.llm.slurm.time=12:30:00", "pools.encoders.slurm.account=0042"]
    text = script(tmp_path, monkeypatch, *overrides)
    assert "#SBATCH --time=12:30:00\n" in text
    assert "#SBATCH --account=0042\n" in text


def test_a_task_gets_one_cpu_per_rank_by_default():
    assert component("p", 1, 4, {}, 120.0).cpus_per_task == "4"
    assert component("p", 1, 4, {"cpus-per-task": 32}, 120.0).cpus_per_task == "32"
    assert component("p", 1, 4, {"exclusive": True}, 120.0).cpus_per_task is None
    assert component("p", 1, 4, {"exclusive": "user"}, 120.0).cpus_per_task == "4"


def test_jobs_are_requeued_unless_the_config_disables_it():
    assert "requeue" in component("p", 1, 1, {}, 120.0).options
    for refusal in ({"requeue": False}, {"no-requeue": True}):
        assert component("p", 1, 1, refusal, 120.0).options.keys() & {"requeue", "no-requeue"} == {"no-requeue"}
    with pytest.raises(ConfigError, match=r"pools.p.slurm: requeue and no-requeue contradict each other"):
        component("p", 1, 1, {"requeue": True, "no-requeue": True}, 120.0)


@pytest.mark.parametrize(("answer", "calls"), [("2026-11-25T00:53:03 ", 1), ("N/A ", 0), ("", 0)])
def test_a_preempted_job_whose_ranks_have_exited_is_requeued(answer, calls):
    part = Component(pool="p", nodes=1, cpus_per_task="1", options={})
    text = script_of(SbatchJob(name="n", title="t", components=(part,), command=("x",), cwd="/", env={}))
    tools = f"srun() {{ return 143; }}\nsqueue() {{ echo '{answer}'; }}\nscontrol() {{ echo \"$@\"; }}\n"
    done = subprocess.run(
        ["bash", "-c", tools + text], env={"SLURM_JOB_ID": "12"}, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode, done.stdout.splitlines()) == (75 if calls else 143, ["requeue 12"] * calls)


def test_the_options_of_a_pool_are_in_its_part_of_the_script(tmp_path, monkeypatch):
    text = script(tmp_path, monkeypatch, "pools.llm.slurm.licenses=" + json.dumps("a:1"))
    assert text.index("--nodes=1") < text.index("#SBATCH hetjob") < text.index("--licenses=a:1")


def starts_in(image: Path, job: SbatchJob) -> list[str]:
    """What the job script's srun would start in a container with this image, whose programs come first on PATH."""
    tools = f"""srun() {{ while [[ $1 == --* ]]; do shift; done; PATH='{image}/bin:/usr/bin:/bin' "$@"; }}\n"""
    done = subprocess.run(["bash", "-c", tools + script_of(job)], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.splitlines()


def test_a_container_starts_its_own_mimo_launch_or_else_the_one_that_submitted(tmp_path):
    for folder in ("host", "image"):
        program = tmp_path / f"a {folder}" / "bin" / "mimo-launch"
        program.parent.mkdir(parents=True)
        program.write_text(f"""#!/bin/sh\nprintf '%s\\n' {folder} "$@"\n""")
        program.chmod(0o755)
    host = str(tmp_path / "a host" / "bin" / "mimo-launch")
    boxed = component("p", 1, 1, {"container-image": "/i.sqsh"}, 120.0)
    job = SbatchJob(name="n", title="t", components=(boxed,), command=(host, "run", "a plan"), cwd=str(tmp_path))
    assert starts_in(tmp_path / "a image", job) == ["image", "run", "a plan"]
    assert starts_in(tmp_path / "without", job) == ["host", "run", "a plan"]
    plain = component("p", 1, 1, {"srun": {"container-mounts": "/a:/a"}}, 120.0)
    assert starts_in(tmp_path / "a image", replace(job, components=(plain,))) == ["host", "run", "a plan"]


def test_a_container_runs_in_the_folder_of_the_job_unless_the_config_has_another():
    for options, folder in (({}, "/home/me"), ({"container-workdir": "/workspace"}, "/workspace")):
        part = component("p", 1, 1, {"container-name": "box", "srun": options}, 120.0)
        text = script_of(SbatchJob(name="n", title="t", components=(part,), command=("x",), cwd="/home/me"))
        assert text.count("--container-workdir") == text.count(f"--container-workdir={folder} ") == 1
