"""`mimo-launch status` and `report` of a rehearsal."""

import fcntl
import json

import pytest

from launcher.cli import main
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.rehearsal_result import read_rehearsal
from tests.launcher.schedulers.plans import request

ONE_MACHINE = ("pools=null",)
FAILED = "language (2 ranks, 2-3): ValueError: no head here\n  rehearsed as rank 3"
DIFFERENT = "language (2 ranks, 2-3): barrier() as call 1"
TOO_LARGE = "vision (2 ranks, 0-1): tensors need 1.0 GiB"
SUMMARY = "4 ranks are 2 kinds, rehearsed in 7.8 s; 2 ranks would fail"
KINDS = [
    {
        "kind": "vision",
        "rank_count": 2,
        "rehearsed_rank": 0,
        "exit_code": 0,
        "ending": "exit code 0",
        "seconds": 1.25,
        "steps": 4,
        "peak_bytes": 354 << 20,
        "traffic": [],
    },
    {
        "kind": "language",
        "rank_count": 2,
        "rehearsed_rank": 3,
        "exit_code": 7,
        "ending": "ValueError: no head here",
        "seconds": 2.5,
        "traffic": [],
    },
]
WHOLE = {
    "exit_code": 7,
    "summary": SUMMARY,
    "kinds": KINDS,
    "failures": [FAILED],
    "call_failures": [DIFFERENT],
    "memory_failures": [TOO_LARGE],
}


@pytest.fixture
def files(tmp_path):
    """The run directory of a rehearsal that was interrupted, in one in which nothing else has run."""
    files = RunDirLayout(tmp_path / "run").rehearsal
    files.attempt_dir(0).mkdir(parents=True)
    files.rehearsed_files_dir.mkdir()
    files.run_id_file.write_text("20261125T033317-4711")
    files.lock_file.write_text("process 4711 on alpha")
    files.plan_file.write_text(request(tmp_path, *ONE_MACHINE).plan.to_json())
    return files


def shown(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_rehearsal_that_is_done_has_its_kinds_failures_exit_code_and_file(files, capsys, command):
    files.rehearsal_file.write_text(json.dumps(WHOLE))
    text = shown(capsys, command, str(files.path))
    assert f": rehearsal done: {SUMMARY}\n  exit code 7, on alpha\n" in text
    assert "vision    2        0            4        1.25       354         ok\n" in text
    assert "language  2        3            -        2.50       -           ValueError: no head here\n" in text
    assert f"\n{FAILED}\n\n{DIFFERENT}\n\n{TOO_LARGE}\n" in text
    assert text.endswith(f"\n\nall of it: {files.rehearsal_file}\n")
    assert "over" not in text


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_run_directory_with_nothing_but_a_rehearsal_is_that_of_the_rehearsal(files, capsys, command):
    files.rehearsal_file.write_text(json.dumps(WHOLE))
    assert shown(capsys, command, str(files.path.parent)) == shown(capsys, command, str(files.path))
    RunDirLayout(files.path.parent).run_id_file.write_text("a-run-1")
    if command == "status":
        assert "rehearsal" not in shown(capsys, command, str(files.path.parent))


def test_programs_get_the_result(files, capsys):
    files.rehearsal_file.write_text(json.dumps(WHOLE))
    state = json.loads(shown(capsys, "status", str(files.path), "--json"))
    found = state["rehearsal"]
    assert (state["state"], found["state"], found["file"]) == ("OVER", "done", str(files.rehearsal_file))
    assert (found["result"]["exit_code"], found["result"]["summary"]) == (7, SUMMARY)
    assert found["result"]["failures"] == [FAILED, DIFFERENT, TOO_LARGE]
    assert [kind["exit_code"] for kind in found["result"]["kinds"]] == [0, 7]
    assert [node["host"] for node in state["nodes"]] == [None, None]
    report = json.loads(shown(capsys, "report", str(files.path), "--json"))
    assert report["rehearsal"] == {"state": "done", "file": str(files.rehearsal_file), "result": WHOLE}
    assert report["report"] is None


@pytest.mark.parametrize("command", ["status", "report"])
def test_a_rehearsal_that_is_going_on(files, capsys, command):
    with files.lock_file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "rehearsal going on\n  on alpha" in shown(capsys, command, str(files.path))
        found = json.loads(shown(capsys, command, str(files.path), "--json"))["rehearsal"]
    assert found == {"state": "going on", "file": str(files.rehearsal_file), "result": None}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="interrupted"),
        pytest.param("", id="empty"),
        pytest.param("[]", id="a list"),
        pytest.param("[" * 100_000, id="deep"),
        pytest.param(json.dumps(WHOLE | {"kinds": [{}]}), id="another version"),
        pytest.param(json.dumps(WHOLE | {"kinds": 1}), id="no kinds"),
        pytest.param(json.dumps(WHOLE | {"exit_code": None}), id="no exit code"),
        pytest.param(b"\xff", id="not UTF-8"),
    ],
)
def test_a_rehearsal_without_a_result_is_interrupted(files, capsys, text):
    if text is not None:
        files.rehearsal_file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_rehearsal(files).state == "interrupted"
    assert "rehearsal without a result: it was interrupted, or" in shown(capsys, "report", str(files.path))
    assert json.loads(shown(capsys, "status", str(files.path), "--json"))["rehearsal"]["result"] is None


def test_a_rehearsal_has_no_page(files, capsys):
    files.rehearsal_file.write_text(json.dumps(WHOLE))
    assert main(["report", str(files.path), "--html"]) == 2
    error = capsys.readouterr().err
    expected = f"--html: {files.path}: a rehearsal has no page; leave out --html to print its result"
    assert error == f"mimo-launch: {expected}\n"
    assert not files.page_file.exists()


def test_a_real_run_is_no_rehearsal(tmp_path):
    assert read_rehearsal(RunDirLayout(tmp_path)) is None
