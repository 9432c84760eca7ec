"""Reading the output of squeue and sacct, of old and new releases of Slurm."""

import json
import subprocess

import pytest

from launcher.errors import LaunchError
from launcher.schedulers.slurm_client import find, state_of


def answers(**by_command):
    """A runner that returns (exit code, stdout, stderr) by the command's name."""

    def run(command):
        code, out, err = by_command.get(command[0], (127, "", "not here"))
        if command[0] == "sacct" and "--json" not in command:
            code, out, err = by_command["sacct_text"]
        return subprocess.CompletedProcess(command, code, out if isinstance(out, str) else json.dumps(out), err)

    return run


# As printed by Slurm 22.05.8, cut down.
OLD = {
    "jobs": [
        {"job_id": 7, "job_state": "RUNNING", "het_job_id": 0, "name": "other", "nodes": "n4", "exit_code": 0},
        {
            "job_id": 270,
            "job_state": "FAILED",
            "state_reason": "NonZeroExitCode",
            "het_job_id": 269,
            "het_job_offset": 1,
            "name": "j",
            "nodes": "n[2-3]",
            "current_working_directory": "/runs/j",
            "exit_code": 1792,
            "restart_cnt": 2,
        },
        {
            "job_id": 269,
            "job_state": "CANCELLED",
            "state_reason": "None",
            "het_job_id": 269,
            "het_job_offset": 0,
            "name": "j",
            "nodes": "n1",
            "current_working_directory": "/runs/j",
            "exit_code": 15,
            "restart_cnt": 2,
        },
    ]
}
# As described by the data parsers of Slurm 23.11 and 24.11.
NEW = {
    "jobs": [
        {
            "job_id": 12,
            "job_state": ["RUNNING", "COMPLETING"],
            "state_reason": "None",
            "het_job_id": {"set": True, "infinite": False, "number": 0},
            "het_job_offset": {"set": False, "infinite": False, "number": 0},
            "name": "j",
            "nodes": "n1",
            "current_working_directory": "/runs/j",
            "exit_code": {"status": ["SUCCESS"], "return_code": {"set": True, "infinite": False, "number": 0}, "signal": {}},
            "restart_cnt": 1,
        }
    ]
}


@pytest.mark.parametrize(
    ("value", "state"),
    [
        ("RUNNING", "RUNNING"),
        ("CANCELLED by 0", "CANCELLED"),
        (["RUNNING"], "RUNNING"),
        (["COMPLETING", "CANCELLED"], "CANCELLED"),
        (["PREEMPTED", "REQUEUED"], "PENDING"),
        ({"current": "COMPLETED", "reason": "None"}, "COMPLETED"),
        ({"current": ["TIMEOUT"], "reason": "None"}, "TIMEOUT"),
        (["CONFIGURING"], "CONFIGURING"),
        ([], "UNKNOWN"),
    ],
)
def test_a_state_is_read_from_text_lists_and_mappings(value, state):
    assert state_of(value) == state


def test_components_are_found_among_all_jobs_by_their_leader():
    job = find("269", answers(squeue=(0, OLD, "")))
    assert [(part.name, part.state, part.nodes, part.exit_code) for part in job.components] == [
        ("269+0", "CANCELLED", "n1", None),
        ("269+1", "FAILED", "n[2-3]", 7),
    ]
    assert (job.state, job.is_over, job.cwd, job.components[1].reason) == ("CANCELLED", True, "/runs/j", "NonZeroExitCode")


def test_the_output_of_a_newer_release_is_read():
    job = find("12", answers(squeue=(0, NEW, "")))
    (part,) = job.components
    assert (part.name, part.state, part.exit_code, part.restarts, job.is_over) == ("12", "RUNNING", None, 1, False)


def test_a_job_unknown_to_squeue_is_read_from_sacct_with_exit_codes_from_its_text():
    accounted = {
        "jobs": [
            {"job_id": 5, "name": "j", "state": {"current": "REQUEUED"}, "het": {"job_id": 0}, "nodes": "n1"},
            {
                "job_id": 5,
                "name": "j",
                "state": {"current": ["FAILED"]},
                "het": {"job_id": 0, "job_offset": None},
                "nodes": "n1",
                "working_directory": "/runs/j",
            },
        ]
    }
    run = answers(squeue=(1, "", "Invalid job id specified"), sacct=(0, accounted, ""), sacct_text=(0, "5|7:0|/runs/a|b\n", ""))
    job = find("5", run)
    assert [(part.state, part.exit_code) for part in job.components] == [("FAILED", 7)]
    assert job.cwd == "/runs/a|b"


@pytest.mark.parametrize("sacct", [(1, "", "Slurm accounting storage is disabled"), (0, {"jobs": [], "errors": []}, "")])
def test_a_job_unknown_to_squeue_and_sacct_is_none(sacct):
    assert find("9", answers(squeue=(0, {"jobs": []}, ""), sacct=sacct)) is None


UNCONFIGURED = """\
squeue: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host
squeue: error: fetch_config: DNS SRV lookup failed
squeue: error: _establish_config_source: failed to fetch config
squeue: fatal: Could not establish a configuration source
"""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        pytest.param(UNCONFIGURED, "Could not establish a configuration source", id="no configuration"),
        pytest.param(
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n",
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            id="no controller",
        ),
        pytest.param("squeue: error: a\n\nsqueue: error: b: c\n", "a; b: c", id="two errors"),
        pytest.param("", "exit code 1", id="nothing printed"),
    ],
)
def test_a_squeue_that_fails_is_an_error_of_one_line(printed, shown):
    with pytest.raises(LaunchError) as error:
        find("4711", answers(squeue=(1, "", printed)))
    assert str(error.value) == (
        f"job 4711: squeue failed: {shown}; run this on a machine of the cluster, or give the job's run directory instead"
    )


def test_a_machine_without_squeue_is_an_error_that_names_the_job(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LaunchError) as error:
        find("4711")
    assert str(error.value) == (
        "job 4711: squeue: not found on PATH; run this on a machine with SLURM's commands, "
        "or give the job's run directory instead"
    )


def test_output_without_json_is_an_error():
    with pytest.raises(
        LaunchError, match=r"the output is not JSON with jobs; use Slurm 21.08 or newer, or give the job's run directory"
    ):
        find("9", answers(squeue=(0, "unknown option", "")))
