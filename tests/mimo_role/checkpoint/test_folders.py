"""Which checkpoints in a folder count, and which are removed."""

import logging
import pickle
import re
import shutil
from unittest import mock

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.metadata import Metadata

from mimo_role import CheckpointError, checkpoint
from mimo_role.checkpoint import folders

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def write(folder, step, suffix=""):
    """A complete checkpoint of one tensor."""
    path = folder / f"step_{step:06}{suffix}"
    dcp.save({"vision.weight": torch.full((50,), float(step))}, checkpoint_id=path, no_dist=True)
    return path


def write_empty(path):
    """A complete checkpoint that names no file."""
    path.mkdir(parents=True)
    (path / ".metadata").write_bytes(pickle.dumps(Metadata({}, storage_data={})))


def truncate(path):
    (file,) = path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-1])


def remove_file(path):
    (file,) = path.glob("*.distcp")
    file.unlink()


def truncate_metadata(path):
    file = path / ".metadata"
    file.write_bytes(file.read_bytes()[:-20])


BREAKS = {
    "truncated": (truncate, r"__0_0\.distcp has \d+ bytes of \d+"),
    "without a file": (remove_file, r"__0_0\.distcp is missing"),
    "without metadata": (lambda path: (path / ".metadata").unlink(), r"\.metadata cannot be read \(FileNotFoundError"),
    "torn metadata": (truncate_metadata, r"\.metadata cannot be read \("),
    "emptied metadata": (lambda path: (path / ".metadata").write_bytes(b""), r"\.metadata cannot be read \(EOFError"),
}


@pytest.mark.parametrize(("damage", "message"), [pytest.param(*each, id=name) for name, each in BREAKS.items()])
def test_a_torn_checkpoint_is_passed_over_with_a_warning_that_names_it(damage, message, tmp_path, caplog):
    write(tmp_path, 1)
    damage(write(tmp_path, 2))

    assert checkpoint.latest(tmp_path) == 1
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert f"{tmp_path}/step_000002 is not complete and is passed over" in record.message
    assert re.search(message, record.message)
    assert folders.problem_of(tmp_path / "step_000001") is None
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 2; there are: 1"):
        folders.find(tmp_path, 2)


def test_a_folder_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoint.latest(tmp_path / "none") is None
    write(tmp_path, 7, ".tmp")
    write(tmp_path, 8, ".removed")
    assert checkpoint.latest(tmp_path) is None
    assert folders.find(tmp_path, None) is None


def test_a_folder_with_torn_checkpoints_only_is_an_error(tmp_path):
    remove_file(write(tmp_path, 1))
    assert checkpoint.latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"all 1 checkpoints are incomplete, step_000001 .* To start anew, remove them"):
        folders.find(tmp_path, None)


def test_a_replaced_checkpoint_counts_until_the_new_one_is_in_place(tmp_path):
    write(tmp_path, 4)
    replaced = write(tmp_path, 5, ".replaced")
    assert folders.find(tmp_path, None) == (5, replaced)
    new = write(tmp_path, 5)
    assert folders.find(tmp_path, None) == (5, new)


@given(
    existing=st.lists(
        st.tuples(st.integers(0, 30), st.sampled_from(["", "", "", ".replaced", ".tmp", ".removed"])), unique=True
    ),
    step=st.integers(0, 30),
    keep=st.none() | st.integers(1, 4),
)
def test_what_is_kept_is_the_new_checkpoint_and_the_last_others(existing, step, keep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    for number, suffix in existing:
        write_empty(folder / f"step_{number:06}{suffix}")
    write_empty(folder / "new")
    counted = {saved.step for saved in folders.complete(folder)} - {step}

    folders.clear_left_over(folder)
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".removed"))]
    folders.put_in_place(folder / "new", folders.path_of(folder, step))
    folders.thin_out(folder, step, keep)

    others = sorted(counted)
    expected = {step, *(others if keep is None else others[max(0, len(others) - keep + 1) :])}
    assert {saved.step for saved in folders.complete(folder)} == expected
    assert not [path.name for path in folder.iterdir() if path.name.endswith((".tmp", ".removed"))]
    assert not folders.path_of(folder, step).with_suffix(".replaced").exists()


@pytest.mark.parametrize("at", range(8))
def test_an_interruption_while_a_checkpoint_is_replaced_and_others_are_removed_loses_none_that_counts(at, tmp_path):
    """Every change of a name is stopped at, before and after the renames and removals."""
    for step in (1, 2, 3):
        write(tmp_path, step)
    write(tmp_path, 3, ".tmp")
    calls = 0

    def counted(real):
        def call(*args, **settings):
            nonlocal calls
            calls += 1
            if calls > at:
                raise KeyboardInterrupt
            return real(*args, **settings)

        return call

    path_type = type(tmp_path)
    with (
        mock.patch.object(path_type, "rename", counted(path_type.rename)),
        mock.patch.object(shutil, "rmtree", counted(shutil.rmtree)),
    ):
        try:
            folders.put_in_place(tmp_path / "step_000003.tmp", folders.path_of(tmp_path, 3))
            folders.thin_out(tmp_path, 3, keep=1)
        except KeyboardInterrupt:
            pass

    assert checkpoint.latest(tmp_path) == 3
    problems = {path.name: folders.problem_of(path) for path in tmp_path.iterdir()}
    assert not [name for name, problem in problems.items() if problem and not name.endswith((".tmp", ".removed"))]
