"""With accounting: jobs that only sacct still knows."""

import subprocess

import pytest

from launcher.schedulers import slurm_client
from tests.cluster.slurm.jobs import Submitted
from tests.cluster.slurm.lab import BIN, Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def accounting(cluster, tmp_path_factory):
    """The cluster with accounting instead of the one without, which is restarted afterwards."""
    Lab.stop()
    try:
        yield Lab.start(2, tmp_path_factory.mktemp("accounting"), str(BIN), SLURM_LAB_ACCT="1")
    finally:
        Lab.stop()
        Lab.start(4, cluster.cwd, cluster.path)


@pytest.fixture
def without_squeue(accounting, monkeypatch):
    """SLURM's commands on that cluster, with an squeue that knows no job, as after MinJobAge."""

    def run(command):
        if command[0] == "squeue":
            return subprocess.CompletedProcess(command, 1, "", "slurm_load_jobs error: Invalid job id specified")
        return accounting.run(*command, check=False)

    return run


def test_a_job_that_failed_is_found_with_its_exit_code_and_folder(accounting, without_squeue, tmp_path):
    job = Submitted(accounting, tmp_path / "user")
    job.config = "name: job\nlayout: colocated\nmodules: {vision: {dp: 2}, language: {dp: 2}}\nentry: {script: script.py}\n"
    job.submit("import sys; sys.exit(7)")
    assert job.wait() == ["FAILED"]
    # The components of a job reach the database one after the other.
    accounting.until(lambda: "|FAILED|/" in accounting.run("sacct", "-nPX", "-o", "jobid,state,workdir", "-j", job.id).stdout)
    found = slurm_client.find(job.id, without_squeue)
    assert (found.state, found.components[0].exit_code, found.is_over) == ("FAILED", 7, True)
    assert found.cwd == str(next(job.run_dir.glob("jobs/*")))
    assert job.mimo("status", job.id).stdout.startswith(f"job {job.id} (job): FAILED\n")


def test_a_cancelled_job_is_found_and_an_unknown_one_is_not(accounting, without_squeue):
    job = accounting.sbatch("--wrap=sleep 600")
    accounting.wait(job, until=lambda states: states == ["RUNNING"])
    accounting.run("scancel", job)
    accounting.wait(job)
    accounting.until(lambda: "CANCELLED" in accounting.run("sacct", "-nPX", "-o", "state", "-j", job).stdout)
    assert slurm_client.find(job, without_squeue).state == "CANCELLED"
    assert slurm_client.find("99999", without_squeue) is None
