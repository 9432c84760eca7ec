"""Which rehearsals have times to learn from."""

import json

import pytest

from launcher.advise.rehearsal_record import ranks_meet
from launcher.errors import LaunchError
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.rehearsal_result import is_rehearsal

PASSED = {"kind": "vision", "exit_code": 0, "meets": True}


@pytest.fixture
def write(tmp_path):
    def write(*kinds, tensors=None):
        files = RunDirLayout(tmp_path)
        files.rehearsal_file.write_text(json.dumps({"kinds": kinds, "tensors": tensors}))
        return files

    return write


@pytest.mark.parametrize(
    ("kinds", "meets"),
    [
        pytest.param([PASSED], True, id="in each step of all kinds"),
        pytest.param([PASSED, PASSED | {"meets": False}], False, id="not of all kinds"),
        pytest.param([PASSED | {"meets": None}], False, id="not known"),
        pytest.param([PASSED | {"exit_code": 75}], True, id="asked to be requeued"),
    ],
)
def test_ranks_meet_where_all_kinds_have_a_collective_of_all_in_each_step(write, kinds, meets):
    files = write(*kinds)
    assert is_rehearsal(files)
    assert ranks_meet(files) is meets


@pytest.mark.parametrize(
    ("kinds", "tensors", "message"),
    [
        pytest.param([PASSED], "fake", "a rehearsal with --memory has no times", id="memory"),
        pytest.param([PASSED], "real", "a rehearsal with --memory has no times", id="real tensors"),
        pytest.param([PASSED, PASSED | {"exit_code": 1}], None, "vision failed in this rehearsal; advise needs", id="failed"),
        pytest.param([PASSED | {"exit_code": 1}] * 3, None, "vision and 2 more failed", id="all failed"),
        pytest.param([{}], None, "this rehearsal has no result", id="another version"),
    ],
)
def test_rehearsals_without_times_are_refused(write, kinds, tensors, message):
    with pytest.raises(LaunchError, match=message):
        ranks_meet(write(*kinds, tensors=tensors))


def test_a_rehearsal_that_was_interrupted_is_refused(tmp_path):
    files = RunDirLayout(tmp_path)
    assert not is_rehearsal(files)
    files.rehearsed_files_dir.mkdir()
    assert is_rehearsal(files)
    with pytest.raises(LaunchError, match="this rehearsal has no result; run mimo-launch rehearse to its end"):
        ranks_meet(files)
