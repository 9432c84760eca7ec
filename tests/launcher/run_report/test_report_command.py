"""`mimo-launch report` and `mimo-launch plan --svg`."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from launcher.cli import main
from launcher.run_dir.layout import RunDirLayout
from tests.launcher.jobs import ROOT, Job
from tests.launcher.run_report.made_runs import made_steps, write_run
from tests.launcher.run_report.test_page import FAILED, data_of

SCRIPT = """
import time, mimo_role

ctx = mimo_role.current()
for step in range(3):
    ctx.step(step)
    with ctx.span("work"):
        time.sleep(0.01)
    ctx.log(loss=1.0 / (step + 1))
if ctx.rank == 2:
    raise ValueError("on purpose")
"""


@pytest.fixture
def run(tmp_path):
    run_dir, _ = write_run(tmp_path, report=FAILED, steps=made_steps(20))
    return run_dir


def test_the_text_has_the_outcome_its_message_restarts_steps_and_stragglers(run, capsys):
    assert main(["report", str(run.path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("small: over, failed: rank 3 (language.pp1) failed first: ValueError")
    assert "\nrestart 1: once: " in text
    assert "\n  in line 7\n" in text
    assert "\n20 steps, " in text
    assert "rank 2 (language.pp0" in text
    assert "\n12 further stragglers cost less and did not last" in text
    assert "\x1b" not in text


def test_programs_get_all_of_the_report(run, capsys):
    assert main(["report", str(run.path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["run_dir"], value["report"]) == (str(run.path), FAILED)


def test_the_page_is_in_the_run_directory_and_a_later_run_moves_it(run, capsys):
    assert main(["report", str(run.path), "--html"]) == 0
    assert capsys.readouterr().out == f"wrote {run.path / 'report.html'}\n"
    assert run.page_file in RunDirLayout(run.path).files_of_run()


def test_the_page_of_one_step_in_another_file(run, tmp_path, capsys):
    assert main(["report", str(run.path), "--html", "--step", "3", "--out", str(tmp_path / "page.html")]) == 0
    assert "Step 3, attempt 0" in (tmp_path / "page.html").read_text()
    assert not run.page_file.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "3"], "--step: only with --html"),
        (["--out", "x"], "--out: only with --html"),
        (["--html", "--json"], "not allowed with"),
        (["--html", "--step", "x"], "--step"),
        (["--html", "--step", "77"], "there are steps 3 to 5"),
        (["--html", "--out", "/proc/nothing/page.html"], "choose another file with --out FILE"),
    ],
)
def test_a_mistake_is_one_line(run, capsys, words, message):
    assert main(["report", str(run.path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--html"]) == 2
    assert "not a run directory of mimo-launch" in capsys.readouterr().err


def test_a_plan_as_svg(capsys):
    config = str(ROOT / "examples" / "digits_vlm" / "pipeline.yaml")
    assert main(["plan", config, "--svg"]) == 0
    assert ElementTree.fromstring(capsys.readouterr().out).tag == "{http://www.w3.org/2000/svg}svg"
    assert main(["plan", config, "--svg", "--json"]) == 2


@pytest.mark.ranks
def test_a_real_run_that_fails_has_a_page_with_its_steps_and_its_message(tmp_path):
    job = Job(tmp_path)
    assert job.run(SCRIPT).returncode == 1
    command = [sys.executable, "-m", "launcher", "report", "runs/small", "--html"]
    done = subprocess.run(
        command, cwd=tmp_path, env=job.whole_environ(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    page = (tmp_path / "runs" / "small" / "report.html").read_text()
    assert "ValueError: on purpose" in page
    timelines = data_of(page, "timeline-data")
    assert [[row["rank"] for row in each["rows"]] for each in timelines] == [[0, 1, 2]] * len(timelines)
    assert all("work" in each["titles"] for each in timelines)
    (curves,) = data_of(page, "curves-data")
    assert "loss" in [chart["title"] for chart in curves["charts"]]
