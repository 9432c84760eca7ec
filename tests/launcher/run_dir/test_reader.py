"""The state of a run, as `mimo-launch status` shows it from the run directory."""

import fcntl
import json

import pytest

from launcher import jobs
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.reader import describe, host_of, read_report
from tests.launcher.schedulers.plans import request

ONE_MACHINE = ("pools=null",)


@pytest.fixture
def folder(tmp_path):
    """A run directory as a run on one machine leaves it that was killed in its second attempt."""
    folder = tmp_path / "run"
    for attempt in range(2):
        (folder / "logs" / f"attempt{attempt}").mkdir(parents=True)
    (folder / "run_id").write_text("20261125T033317-4711")
    (folder / ".lock").write_text("process 4711 on alpha")
    (folder / "plan.json").write_text(request(tmp_path, *ONE_MACHINE).plan.to_json())
    return folder


def report(folder, outcome="done", exit_code=0, headline=None, attempts=1):
    value = {"outcome": outcome, "exit_code": exit_code, "headline": headline, "attempts": attempts, "began": "", "ended": ""}
    (folder / "report.json").write_text(json.dumps(value))


FIRST = "rank 2 (language.tp1) failed first: exit code 7"


@pytest.mark.parametrize(
    ("ended", "expected"),
    [
        pytest.param({}, "over, done\n  exit code 0, 1 attempt, on alpha", id="done"),
        pytest.param(
            {"outcome": "failed", "exit_code": 7, "headline": FIRST, "attempts": 3},
            f"over, failed: {FIRST}\n  exit code 7, 3 attempts, on alpha",
            id="failed",
        ),
        pytest.param(
            {"outcome": "ended", "exit_code": 143, "headline": "ended by SIGTERM"},
            "over, ended by SIGTERM\n  exit code 143, 1 attempt, on alpha",
            id="ended from outside",
        ),
    ],
)
def test_the_outcome_of_a_run_is_read_from_its_report(folder, ended, expected):
    report(folder, **ended)
    assert describe(RunDirLayout(folder)) == expected
    assert jobs.as_table(jobs.find(str(folder))).startswith(f"run directory: {folder}: {expected}\n\n")


def test_a_run_is_going_on_while_its_directory_is_locked(folder):
    with (folder / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert describe(RunDirLayout(folder)) == "running\n  2 attempts, on alpha"
        assert json.loads(jobs.as_json(jobs.find(str(folder))))["state"] == "RUNNING"


def test_without_a_report_mimo_launch_was_killed(folder):
    expected = "over, without a report: mimo-launch was killed, or could not write\n  2 attempts, on alpha"
    assert describe(RunDirLayout(folder)) == expected
    assert json.loads(jobs.as_json(jobs.find(str(folder))))["report"] is None


def test_a_directory_in_which_nothing_has_run_has_no_killed_run(tmp_path):
    assert describe(RunDirLayout(tmp_path)) == "over"


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "[]", "{}", '{"outcome": "done"}', '{"outcome": "", "exit_code": "x"}', "\udcff"]
)
def test_a_report_that_cannot_be_read_is_none(folder, text):
    (folder / "report.json").write_bytes(text.encode(errors="surrogateescape"))
    assert read_report(RunDirLayout(folder)) is None


def test_programs_get_the_report_and_the_host(folder):
    report(folder, "failed", 7, FIRST, 2)
    value = json.loads(jobs.as_json(jobs.find(str(folder))))
    assert value["state"] == "OVER"
    assert value["report"] == {"outcome": "failed", "exit_code": 7, "headline": FIRST, "attempts": 2}
    assert [node["host"] for node in value["nodes"]] == ["alpha"] * len(value["nodes"])


def test_stragglers_of_a_run_that_is_over_are_shown(folder):
    report(folder)
    value = json.loads((folder / "report.json").read_text())
    straggler = {"rank": 2, "label": "language.tp1", "node": "alpha", "ratio": 1.5, "since_step": 7, "until_step": None}
    value["stragglers"] = [{"attempt": 1, "share": 0.1, **straggler}, {"attempt": 1, "of": "another version"}]
    (folder / "report.json").write_text(json.dumps(value))
    job = jobs.find(str(folder))
    line = "rank 2 (language.tp1, alpha) computes 1.50x its peers' median since step 7; 10 % of each step of the whole job"
    assert jobs.as_table(job).splitlines()[-1] == line
    assert json.loads(jobs.as_json(job))["stragglers"] == value["stragglers"]


def test_hosts_of_several_nodes_are_not_taken_from_the_lock(folder, tmp_path):
    (folder / "plan.json").write_text(request(tmp_path).plan.to_json())
    value = json.loads(jobs.as_json(jobs.find(str(folder))))
    assert [node["host"] for node in value["nodes"]] == [None, None]


@pytest.mark.parametrize(
    ("lock", "host"),
    [
        ("process 4711 on alpha", "alpha"),
        ("process 4711 on alpha, SLURM job 12", "alpha"),
        ("process 3 on beta", None),
        ("", None),
    ],
)
def test_the_host_is_that_of_the_process_which_has_named_the_run(folder, lock, host):
    (folder / ".lock").write_text(lock)
    assert host_of(RunDirLayout(folder)) == host
