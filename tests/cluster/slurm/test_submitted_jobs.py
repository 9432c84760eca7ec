"""mimo-launch submit, status, logs and cancel, on a real cluster without accounting."""

import json
import subprocess

import pytest

from tests.cluster.slurm.jobs import Submitted
from tests.cluster.slurm.lab import BIN

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PRINTS = """
import os, sys, json, socket
print(json.dumps([os.environ["RANK"], socket.gethostname(), sys.argv[1:], os.environ.get("ODD"), os.getcwd()]))
"""

WAITS = """
import pathlib, time, mimo_role
print("up", flush=True)
while not pathlib.Path("go").exists():
    time.sleep(0.1)
print("done")
"""

NASTY = "a b\"c'd\\e$HOME`x`,é;#%j\t*"


@pytest.fixture
def job(lab, tmp_path):
    return Submitted(lab, tmp_path / 'it\'s a $folder, "quoted"')


def test_a_job_of_two_pools_runs_where_the_plan_says(job, lab):
    job.submit(PRINTS)
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    status = json.loads(job.mimo("status", job.id, "--json").stdout)
    assert (status["state"], [part["state"] for part in status["components"]]) == ("COMPLETED", ["COMPLETED", "COMPLETED"])
    assert [(node["pool"], node["ranks"], node["modules"]) for node in status["nodes"]] == [
        ("encoders", [0, 1], ["vision"]),
        ("llm", [2], ["language"]),
        ("llm", [3], ["language"]),
    ]
    hosts = {rank: node["host"] for node in status["nodes"] for rank in node["ranks"]}
    printed = [json.loads(line.partition("] ")[2]) for line in job.mimo("logs", job.id).stdout.splitlines() if '["' in line]
    assert {int(rank): host for rank, host, *_ in printed} == hosts
    assert {folder for *_, folder in printed} == {str(job.folder)}
    assert json.loads(job.mimo("status", "runs/job", "--json").stdout) == status


def test_names_variables_and_arguments_reach_the_job_unchanged(job):
    text = f"{NASTY}\nsecond line"
    job.config = job.config.replace("name: job", f"name: {json.dumps(text)}") + f"env: {{ODD: {json.dumps(text)}}}\n"
    job.config = job.config.replace("runs/job", "runs/job, it's")
    job.submit(PRINTS, "pools.encoders.slurm.comment=" + json.dumps(NASTY), "--", text, "")
    assert job.wait() == ["COMPLETED", "COMPLETED"]
    lines = job.mimo("logs", job.id, "--rank", "0,3").stdout.splitlines()
    printed = [json.loads(line.partition("] ")[2]) for line in lines if '["' in line]
    assert [(arguments, variable) for _, _, arguments, variable, _ in printed] == [([text, ""], text)] * 2
    shown = job.lab.run("squeue", "--noheader", "--states=all", f"--jobs={job.id}", "--format=%j|%k").stdout.splitlines()
    assert shown[0] == f"{text.replace(chr(10), ' ').replace(chr(9), ' ')}|{NASTY}"


def test_logs_are_filtered_by_module_stage_and_rank_and_followed_to_the_end(job):
    job.submit(WAITS)
    follower = subprocess.Popen(
        [str(BIN / "mimo-launch"), "logs", job.id, "--module", "language", "--stage", "0", "--rank", "3", "--follow"],
        cwd=job.folder,
        env=job.lab.environ(),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        # torch may write a warning of its own before.
        assert next(line for line in follower.stdout if "c10d" not in line) == "[language.tp1 r3] up\n"
        assert job.mimo("status", job.id).stdout.startswith(f"job {job.id} (job): RUNNING\n")
        (job.folder / "go").touch()
        rest = follower.communicate(timeout=60)[0]
    finally:
        follower.kill()
        follower.communicate()
    assert [line for line in rest.splitlines() if "c10d" not in line] == ["[language.tp1 r3] done"]
    assert follower.returncode == 0
    assert job.wait() == ["COMPLETED", "COMPLETED"]
    assert job.mimo("logs", job.id, "--module", "audio", check=False).stderr == (
        "mimo-launch: --module audio: no such module; there are vision, language\n"
    )


def test_several_jobs_in_one_run_directory_are_distinguished(job):
    first = job.submit("import os; print('job', os.environ['SLURM_JOB_ID'])").id
    assert job.wait() == ["COMPLETED", "COMPLETED"]
    second = job.submit(None, "pools.encoders.slurm.hold=true").id
    status = json.loads(job.mimo("status", second, "--json").stdout)
    assert status["state"] == "PENDING"
    assert {node["host"] for node in status["nodes"]} == {None}
    assert job.mimo("logs", second, "--rank", "0").stdout == ""
    job.lab.run("scontrol", "release", second)
    assert job.wait() == ["COMPLETED", "COMPLETED"]
    for number in (first, second):
        assert f"[vision.dp0 r0] job {number}\n" in job.mimo("logs", number, "--rank", "0").stdout


def test_a_job_is_cancelled(job):
    job.submit(WAITS)
    job.wait(until=lambda states: states == ["RUNNING", "RUNNING"])
    assert job.mimo("cancel", job.id).stderr == f"mimo-launch: job {job.id} is cancelled\n"
    assert job.wait() == ["CANCELLED", "CANCELLED"]
    assert "CANCELLED" in job.mimo("status", job.id).stdout
    assert job.mimo("cancel", "runs/job").stderr == f"mimo-launch: job {job.id} has ended already: CANCELLED\n"


def test_a_job_ends_with_the_failing_ranks_own_exit_code(job):
    job.submit("import sys, mimo_role\nif mimo_role.current().rank == 3: sys.exit(7)\nimport time; time.sleep(600)")
    assert job.wait() == ["FAILED", "FAILED"]
    status = json.loads(job.mimo("status", job.id, "--json").stdout)
    assert {part["exit_code"] for part in status["components"]} == {7}, job.output()
    assert "rank 3 (language.tp1) failed first: exit code 7" in job.output()


def test_variables_of_a_surrounding_job_do_not_reach_the_new_one(job):
    around = {"SBATCH_PARTITION": "urgent", "SLURM_NTASKS": "7", "SBATCH_TIMELIMIT": "1", "SLURM_CPU_BIND": "map_cpu:0"}
    job.submit(PRINTS, env=around | {"MIMO_ROLE": "{}", "RANK": "3"})
    assert job.lab.run("squeue", "--noheader", "--states=all", f"--jobs={job.id}", "--format=%P").stdout.split() == ["lab"] * 2
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()


def test_a_snapshot_runs_what_the_script_was_when_it_was_submitted(job):
    job.folder.mkdir(parents=True)
    (job.folder / "helper.py").write_text("WORD = 'helper'")
    job.submit("import helper, sys; print('old', helper.WORD)", "--snapshot", "pools.encoders.slurm.hold=true")
    (job.folder / "script.py").write_text("print('new')")
    (job.folder / "helper.py").unlink()
    job.lab.run("scontrol", "release", job.id)
    assert job.wait() == ["COMPLETED", "COMPLETED"], job.output()
    assert "[vision.dp0 r0] old helper" in job.mimo("logs", job.id).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pools.llm.slurm.partition=nosuch"], "invalid partition specified: nosuch"),
        (["run_dir=runs/50%j"], "SLURM reads % and \\ in a path as patterns; choose another"),
        (["pools.llm.slurm.nodes=3"], "mimo-launch sets this option itself (pools set it); leave it out"),
    ],
)
def test_a_job_that_slurm_or_mimo_launch_refuses_is_not_submitted(job, words, message):
    job.folder.mkdir(parents=True)
    (job.folder / "job.yaml").write_text(job.config)
    (job.folder / "script.py").touch()
    done = job.mimo("submit", "job.yaml", "--to", "slurm", *words, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not done.stdout


def test_an_unknown_job_is_an_error(job):
    job.folder.mkdir(parents=True)
    for command in ("status", "logs", "cancel"):
        done = job.mimo(command, "99999", check=False)
        assert done.returncode == 2
        assert done.stderr == "mimo-launch: job 99999: not known to SLURM (any more); give its run directory instead\n"
