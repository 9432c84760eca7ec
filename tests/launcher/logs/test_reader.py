"""The ranks' output in a run directory, as `mimo-launch logs` prints it."""

import socket
import subprocess
import sys
import threading

import pytest

from launcher.errors import LaunchError
from launcher.logs.reader import LogFilter, lines_of, ranks_from
from launcher.run_dir.layout import RunDirLayout
from tests.launcher.schedulers.plans import request

NESTED_BARS = "\repoch 0\n\rbatch 0\x1b[A\n\rbatch 1\x1b[A\n\r       \x1b[A\repoch 1\n"


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return request(tmp_path, "modules.language={tp: 2, pp: 2, dp: 1}").plan


def write(run_dir, attempt, rank, text, stream="stdout"):
    path = run_dir / "logs" / f"attempt{attempt}" / f"rank{rank}.{stream}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("wanted", "ranks"),
    [
        (LogFilter(), [0, 1, 2, 3, 4, 5]),
        (LogFilter(module="vision"), [0, 1]),
        (LogFilter(module="language", stage=1), [4, 5]),
        (LogFilter(stage=0), [0, 1, 2, 3]),
        (LogFilter(module="language", stage=1, ranks=(0, 5)), [5]),
    ],
)
def test_ranks_are_chosen_by_module_stage_and_number(plan, wanted, ranks):
    assert wanted.ranks_of(plan.topology) == ranks


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (LogFilter(module="audio"), "--module audio: no such module; there are vision, language"),
        (LogFilter(ranks=(6,)), "--rank 6: no such rank; there are ranks 0-5"),
        (LogFilter(module="vision", stage=1), "no rank matches --module vision --stage 1"),
    ],
)
def test_criteria_that_match_no_rank_are_refused(plan, tmp_path, wanted, message):
    with pytest.raises(LaunchError) as error:
        lines_of(lambda: RunDirLayout(tmp_path), plan, wanted)
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "ranks"), [(None, ()), ("7", (7,)), ("0, 3-5", (0, 3, 4, 5))])
def test_ranks_are_written_as_numbers_and_ranges(text, ranks):
    assert ranks_from(text) == ranks


@pytest.mark.parametrize("text", ["", "a", "5-3", "1,,2", "-1"])
def test_other_text_is_not_a_list_of_ranks(text):
    with pytest.raises(LaunchError, match="write 7, or 0,3-5"):
        ranks_from(text)


def test_the_last_attempt_is_printed_rank_by_rank_with_both_streams(plan, tmp_path):
    write(tmp_path, 0, 0, "old\n")
    write(tmp_path, 10, 0, "one\ntwo")
    write(tmp_path, 10, 0, "warned\n", "stderr")
    write(tmp_path, 9, 1, "older\n")
    write(tmp_path, 10, 1, "\xff x\n")
    assert list(lines_of(lambda: RunDirLayout(tmp_path), plan, LogFilter(module="vision"))) == [
        "[vision.dp0 r0] one\n",
        "[vision.dp0 r0] two\n",
        "[vision.dp0 r0] warned\n",
        "[vision.dp1 r1] \xff x\n",
    ]


def test_a_run_that_has_not_begun_is_waited_for(plan, tmp_path):
    begun, over = threading.Event(), threading.Event()
    lines = lines_of(lambda: RunDirLayout(tmp_path) if begun.is_set() else None, plan, LogFilter(ranks=(0,)), over.is_set)
    write(tmp_path, 0, 0, "one\n")
    begun.set()
    assert next(lines) == "[vision.dp0 r0] one\n"
    over.set()
    assert list(lines) == []


def test_following_continues_with_a_new_attempt_and_ends_with_the_job(plan, tmp_path):
    write(tmp_path, 0, 0, "one\n")
    over = threading.Event()
    lines = lines_of(lambda: RunDirLayout(tmp_path), plan, LogFilter(ranks=(0,)), over.is_set)
    assert next(lines) == "[vision.dp0 r0] one\n"
    write(tmp_path, 1, 0, "two\n")
    assert next(lines) == "[vision.dp0 r0] two\n"
    with (tmp_path / "logs" / "attempt1" / "rank0.stdout.log").open("a") as file:
        file.write("without an end")
    over.set()
    assert list(lines) == ["[vision.dp0 r0] without an end\n"]


def mimo(folder, *words):
    return subprocess.run(
        [sys.executable, "-m", "launcher", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.ranks
def test_a_run_of_this_machine_has_a_status_and_logs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = "name: one\nlayout: colocated\nmodules: {vision: {dp: 2}, language: {dp: 2}}\nentry: {script: train.py}\n"
    request(tmp_path, config=config)
    (tmp_path / "train.py").write_text("import mimo_role\nprint('rank', mimo_role.current().rank)")
    assert mimo(tmp_path, "run", "job.yaml").returncode == 0
    assert mimo(tmp_path, "logs", "runs/one", "--rank", "1").stdout == "[vision.dp1+language.dp1 r1] rank 1\n"
    assert mimo(tmp_path, "logs", "runs/one", "--follow").stdout.count("rank") == 2
    status = mimo(tmp_path, "status", "runs/one").stdout
    details = f"exit code 0, 1 attempt, on {socket.gethostname()}"
    assert status.startswith(f"run directory: {tmp_path}/runs/one: over, done\n  {details}\n")
    assert "vision, language" in status
    cancelled = mimo(tmp_path, "cancel", "runs/one")
    assert (cancelled.returncode, cancelled.stderr) == (
        2,
        "mimo-launch: runs/one: a run on this machine, not a submitted job; end it with Ctrl-C\n",
    )


def test_a_name_that_is_not_a_job_is_refused(tmp_path):
    assert mimo(tmp_path, "status", "nowhere").stderr == "mimo-launch: nowhere: neither the id of a job nor a run directory\n"
    assert mimo(tmp_path, "logs", ".").stderr == "mimo-launch: .: not a run directory of mimo-launch\n"


@pytest.mark.ranks
def test_a_plan_that_was_made_earlier_can_be_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = "name: one\nlayout: colocated\nmodules: {vision: {}, language: {}}\nentry: {script: train.py}\n"
    made = request(tmp_path, config=config)
    (tmp_path / "train.py").write_text("print('ran')")
    (tmp_path / "kept.json").write_text(made.plan.to_json())
    assert mimo(tmp_path, "run", "kept.json").stdout == "[vision+language r0] ran\n"
    refused = mimo(tmp_path, "run", "kept.json", "modules.vision.dp=2")
    assert refused.returncode == 2
    assert "kept.json is a plan, which overrides cannot change; give them with a config" in refused.stderr
    (tmp_path / "kept.json").write_text("{}")
    assert "kept.json: not a plan of this mimo-launch" in mimo(tmp_path, "run", "kept.json").stderr
    assert mimo(tmp_path, "run", "gone.json").stderr == "mimo-launch: gone.json: no such file\n"


def test_of_a_bar_the_last_state_is_printed(plan, tmp_path):
    write(tmp_path, 0, 0, "\r  0%\r100%\n" + NESTED_BARS, "stderr")
    write(tmp_path, 0, 1, "\r 42%\r 43%", "stderr")
    assert list(lines_of(lambda: RunDirLayout(tmp_path), plan, LogFilter(module="vision"))) == [
        "[vision.dp0 r0] 100%\n",
        "[vision.dp0 r0] epoch 1\n",
        "[vision.dp1 r1]  43%\n",
    ]


def test_codes_that_would_change_other_lines_are_not_printed(plan, tmp_path):
    write(tmp_path, 0, 0, "\x1b[2J\x1b[31mred\x1b[0m\x1b[H\n")
    assert list(lines_of(lambda: RunDirLayout(tmp_path), plan, LogFilter(ranks=(0,)))) == [
        "[vision.dp0 r0] \x1b[31mred\x1b[0m\n"
    ]


def test_following_prints_the_state_of_a_bar_without_a_line_end(plan, tmp_path):
    write(tmp_path, 0, 0, "\r 42%\r 43%", "stderr")
    over = threading.Event()
    lines = lines_of(lambda: RunDirLayout(tmp_path), plan, LogFilter(ranks=(0,)), over.is_set)
    assert next(lines) == "[vision.dp0 r0]  43%\n"
    with (tmp_path / "logs" / "attempt0" / "rank0.stderr.log").open("a") as file:
        file.write("\r100%\n")
    over.set()
    assert list(lines) == ["[vision.dp0 r0] 100%\n"]
