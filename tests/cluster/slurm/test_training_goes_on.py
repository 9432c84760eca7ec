"""A training that is preempted, warned, or loses a node ends with the same loss as an undisturbed one."""

import os
import signal

import pytest

from tests.cluster.slurm.jobs import Submitted
from tests.cluster.slurm.lab import ROOT, Lab

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

STEPS = 700
TRAINING = f"""\
name: training
layout: non_colocated
modules:
  vision:   {{dp: 2, pool: encoders}}
  language: {{dp: 2, pool: llm}}
pools:
  encoders: {{nodes: 1, procs_per_node: 2, slurm: {{exclusive: true}}}}
  llm:      {{nodes: 2, procs_per_node: 1, slurm: {{exclusive: true}}}}
entry: {{script: {ROOT}/examples/digits_vlm/train.py}}
args: [--steps, "{STEPS}", --eval-every, "0"]
runtime: {{timeout_s: 60, grace_s: 30}}
run_dir: runs/job
"""


@pytest.fixture
def training(lab, tmp_path):
    return Submitted(lab, tmp_path / "user", TRAINING)


@pytest.fixture(scope="session")
def undisturbed(cluster, tmp_path_factory):
    """The loss of each step of an undisturbed training."""
    training = Submitted(cluster, tmp_path_factory.mktemp("undisturbed"), TRAINING)
    training.submit(None)
    assert training.wait(timeout_s=180) == ["COMPLETED", "COMPLETED"], training.output()
    losses = training.metrics()
    assert list(losses) == list(range(1, STEPS + 1))
    return losses


@pytest.fixture
def loses_a_node(training):
    """A training on a cluster that is restarted afterwards."""
    yield training
    Lab.stop()
    Lab.start(4, training.lab.cwd, training.lab.path)


def saved_steps(training):
    return sorted(
        int(path.name.removeprefix("step_")) for path in training.run_dir.glob("checkpoints/step_*") if path.suffix == ""
    )


def test_a_preempted_training_saves_is_requeued_and_continues(training, undisturbed):
    training.submit(None)
    training.lab.until(lambda: max(training.metrics(), default=0) > 60, timeout_s=120)
    urgent = training.lab.sbatch("--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 2")
    assert training.lab.wait(urgent) == ["COMPLETED"]
    assert training.wait(timeout_s=180) == ["COMPLETED", "COMPLETED"], training.output()
    assert training.lab.restarts(training.id) == 1
    (step,) = saved_steps(training)
    assert 60 < step < STEPS
    assert training.metrics() == undisturbed


def test_a_preempted_script_that_ignores_the_notice_is_requeued_too(lab, tmp_path):
    job = Submitted(lab, tmp_path / "user")
    job.submit("import os, time\nprint('up', flush=True)\nif os.environ['MIMO_RESTART_COUNT'] == '0': time.sleep(600)")
    lab.until(lambda: "up" in job.output())
    urgent = lab.sbatch("--partition=urgent", "--nodes=4", "--exclusive", "--wrap=sleep 1")
    assert lab.wait(urgent) == ["COMPLETED"]
    assert job.wait(timeout_s=120) == ["COMPLETED", "COMPLETED"], job.output()
    assert lab.restarts(job.id) == 1


def test_a_training_that_is_warned_by_sigusr1_saves_and_requeues_itself(training, undisturbed):
    training.submit(None)
    training.lab.until(lambda: max(training.metrics(), default=0) > 60, timeout_s=120)
    training.lab.run("scancel", "--signal=USR1", training.id)
    assert training.wait(timeout_s=180) == ["COMPLETED", "COMPLETED"], training.output()
    assert training.lab.restarts(training.id) == 1
    assert len(saved_steps(training)) == 1
    assert "the ranks asked to be requeued" in training.output()
    assert training.metrics() == undisturbed


def test_a_training_that_loses_a_node_is_requeued_and_continues(loses_a_node, undisturbed):
    training = loses_a_node
    training.submit(None, "--", "--checkpoint-every", "50")
    training.lab.until(lambda: len(saved_steps(training)) > 1, timeout_s=120)
    node = training.lab.folder / "run" / "n2.pid"
    os.kill(int(node.read_text()), signal.SIGKILL)
    assert training.wait(timeout_s=240) == ["COMPLETED", "COMPLETED"], training.output()
    assert training.lab.restarts(training.id) == 1
    assert training.metrics() == undisturbed
