"""The report of a failed job."""

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.failures.crash import Frame
from launcher.failures.report import FailureReport, headline
from tests.launcher.failures.rank_exits import GLOO_LOST_A_PEER, SCRIPT, TOPOLOGY, TORCH, crash, record

OWN = crash("ValueError", "bad batch 7")


def report(*records, first=None, **more):
    options = {"oom_kills": 0, "joined_by_launcher": False}
    return FailureReport.of(TOPOLOGY, records, records[0] if first is None else first, **(options | more))


def lines(*records, **more):
    return [line.strip() for line in report(*records, **more).text().splitlines()]


def test_the_headline_names_rank_role_and_exit():
    assert headline(TOPOLOGY, record(5, crash=OWN)) == "rank 5 (language.pp1.tp1) failed first: ValueError: bad batch 7"


@pytest.mark.parametrize(("code", "job"), [(1, 1), (7, 7), (-9, 1), (-signal.SIGSEGV, 1)])
def test_the_job_has_the_exit_code_of_the_rank_if_it_is_positive(code, job):
    assert report(record(0, code)).exit_code == job


def test_the_place_has_the_step_if_it_is_known():
    assert any(line.startswith("on hosta, at ") and line.endswith(", in step 12") for line in lines(record(0, 3, step=12)))
    assert any(line.startswith("on hosta, at ") and "step" not in line for line in lines(record(0, 3)))


# The others.


def test_ranks_that_failed_in_the_same_way_are_grouped():
    others = [record(rank, crash=crash("ValueError", f"bad batch {rank}0")) for rank in range(1, 6)]
    text_lines = lines(record(0, crash=OWN), *others)
    (line,) = [line for line in text_lines if "the same on" in line]
    assert line == (
        "the same on 5 other ranks: 1 of vision (ranks 1), 2 of language.pp0 (ranks 2-3), 2 of language.pp1 (ranks 4-5)"
    )
    assert not [line for line in text_lines if line.startswith("then ")]


def test_one_rank_that_failed_in_the_same_way_is_named():
    assert "the same on rank 4 (language.pp1.tp0)" in lines(record(0, crash=OWN), record(4, crash=OWN))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(crash("KeyError", "bad batch 7"), id="another class"),
        pytest.param(crash("ValueError", "bad sample 7"), id="another text"),
        pytest.param(crash("ValueError", "bad batch 7", frames=[replace(SCRIPT, line=13)]), id="another line"),
        pytest.param(None, id="no exception"),
    ],
)
def test_failures_that_differ_are_not_grouped(other):
    text_lines = lines(record(0, crash=OWN), record(1, crash=other))
    assert not [line for line in text_lines if line.startswith("the same")]
    assert [line for line in text_lines if line.startswith("then rank 1 (vision.dp1): ")]


def test_addresses_do_not_make_a_difference():
    one, other = (crash("RuntimeError", f"<Tensor at {at}> on rank {rank}") for at, rank in (("0x7f01ab", 0), ("0x55", 13)))
    assert "the same on rank 1 (vision.dp1)" in lines(record(0, crash=one), record(1, crash=other))


def test_a_rank_that_was_ended_after_its_exception_is_grouped_with_the_others():
    assert "the same on rank 1 (vision.dp1)" in lines(record(0, crash=OWN), record(1, -signal.SIGTERM, crash=OWN))


def test_ranks_that_were_ended_or_exited_with_0_are_left_out():
    text_lines = lines(record(0, crash=OWN), record(1, -signal.SIGTERM), record(2, -signal.SIGKILL), record(3, 0))
    assert not [line for line in text_lines if line.startswith(("the same", "then"))]


def test_later_failures_are_grouped_in_their_order():
    lost = crash("RuntimeError", GLOO_LOST_A_PEER)
    text_lines = lines(
        record(0, order=0, crash=OWN), record(5, 3, order=1), record(1, order=2, crash=lost), record(2, order=3, crash=lost)
    )
    after = [line for line in text_lines if line.startswith("then ")]
    assert after == [
        "then rank 5 (language.pp1.tp1): exit code 3",
        "then 2 other ranks: rank 1 (vision.dp1), rank 2 (language.pp0.tp0): " + record(1, crash=lost).ending,
    ]


def test_of_many_ways_to_fail_the_first_four_are_shown():
    text_lines = lines(record(0, crash=OWN), *(record(rank, rank + 3) for rank in range(1, 6)))
    assert len([line for line in text_lines if line.startswith("then ")]) == 4
    assert "and 1 more ranks in other ways" in text_lines


def test_the_order_of_the_records_does_not_matter():
    records = [record(0, crash=OWN), record(1, 3), record(2, 4), record(3, -15)]
    assert report(*records).text() == report(*reversed(records), first=records[0]).text()


# The cause.


def test_only_the_users_frames_and_the_innermost_one_are_shown():
    text_lines = lines(record(0, crash=crash("ValueError", "no", frames=[TORCH, SCRIPT, TORCH, TORCH])))
    shown = [line for line in text_lines if ".py" in line]
    assert shown == ["/home/me/train.py:12 in main", "... torch/nn/modules/module.py:1779 in _call_impl"]
    assert "loss = model(batch)" in text_lines


def test_without_frames_of_the_user_all_are_shown():
    text_lines = lines(record(0, crash=crash("ValueError", "no", frames=[TORCH])))
    assert f"{TORCH.file}:1779 in _call_impl" in text_lines


def test_of_many_frames_the_innermost_are_shown():
    frames = [Frame("/home/me/a.py", number, "f", "", is_users=True) for number in range(50)]
    shown = [line for line in lines(record(0, crash=crash("ValueError", "no", frames=frames))) if "a.py" in line]
    assert shown == [f"/home/me/a.py:{number} in f" for number in range(42, 50)]


def test_files_below_the_working_directory_are_shown_relative_to_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = Frame(str(tmp_path / "code" / "a.py"), 3, "f", "", is_users=True)
    assert str(Path("code") / "a.py") + ":3 in f" in lines(record(0, crash=crash("ValueError", "no", frames=[frame])))


def test_of_a_long_message_both_ends_are_shown():
    text = "\n".join(["first", *(f"line {number}" for number in range(20))])
    text_lines = lines(record(0, crash=crash("ValueError", text)))
    assert text_lines[text_lines.index("| line 0") : text_lines.index("| line 19") + 1] == [
        "| line 0",
        "| line 1",
        "| line 2",
        "| ...",
        "| line 17",
        "| line 18",
        "| line 19",
    ]


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(record(0, 3, tail=[f"line {number}" for number in range(20)]), id="a code"),
        pytest.param(
            record(0, 1, tail=[f"line {number}" for number in range(20)], crash=crash("SystemExit", "no data", frames=())),
            id="sys.exit with a text",
        ),
    ],
)
def test_without_an_exception_the_last_lines_of_output_are_shown(end):
    assert [line for line in lines(end) if line.startswith("|")] == [f"| line {number}" for number in range(14, 20)]


def test_the_rest_of_the_report():
    ended = record(0, -9, logs=["/run/stderr.log", "/run/stdout.log"])
    text_lines = lines(ended, record(1, -15), not_again="no progress", oom_kills=2)
    assert "not restarted: no progress" in text_lines
    assert any(line.startswith("hint: the kernel's out-of-memory killer has ended 2 processes on hosta") for line in text_lines)
    assert text_lines[-1] == "output: /run/stderr.log"


# For programs.


def test_the_report_for_programs_is_json():
    records = [record(0, 1, step=3, crash=OWN, tail=["\udcff"], logs=["/run/a"]), record(1, 3), record(2, 3), record(3, -15)]
    found = json.loads(json.dumps(report(*records, not_again="no progress").as_dict()))
    assert found["headline"] == "rank 0 (vision.dp0) failed first: ValueError: bad batch 7"
    assert found["not_started_again"] == "no progress"
    assert found["hint"] is None
    assert found["first"] == found["ranks"][0]
    assert [(rank["rank"], rank["label"], rank["ending"]) for rank in found["ranks"]] == [
        (0, "vision.dp0", "ValueError: bad batch 7"),
        (1, "vision.dp1", "exit code 3"),
        (2, "language.pp0.tp0", "exit code 3"),
        (3, "language.pp0.tp1", "killed by SIGTERM"),
    ]
    assert found["first"]["crash"]["frames"][0]["function"] == "main"
    assert found["first"]["coords"] == TOPOLOGY.coords_of(0)
    assert found["first"]["role"] == TOPOLOGY.role_of(0).as_dict()
    assert [(group["ending"], group["ranks"]) for group in found["others"]] == [
        ("exit code 3", [1, 2]),
        ("killed by SIGTERM", [3]),
    ]
    assert found["others"][0]["who"] == "rank 1 (vision.dp1), rank 2 (language.pp0.tp0)"
