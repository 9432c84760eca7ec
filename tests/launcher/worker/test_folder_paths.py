"""Paths that are resolved while folders are remembered: the same as otherwise."""

import os
from pathlib import Path

import pytest

from launcher.worker.folder_paths import folders_resolved_once

PATHS = [
    "{here}/file",
    "{here}/folder/file",
    "{here}/linked_folder/file",
    "{here}/linked_file",
    "{here}/linked_folder/linked_file",
    "{here}/linked_folder",
    "{here}/folder/../file",
    "{here}/linked_folder/..",
    "{here}/linked_folder/.",
    "{here}/folder/",
    "{here}/no_folder/no_file",
    "{here}/circle",
    "folder/file",
    "linked_file",
    "file",
    "",
    ".",
    "/",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked_folder").symlink_to("other/deep")
    (tmp_path / "other" / "deep" / "linked_file").symlink_to("../../folder/file")
    (tmp_path / "linked_file").symlink_to("linked_folder/linked_file")
    (tmp_path / "circle").symlink_to("circle")
    for file in ("file", "folder/file", "other/deep/file"):
        (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", [str, os.fsencode, Path], ids=["text", "bytes", "path"])
def test_paths_are_resolved_as_otherwise(here, kind):
    paths = [kind(path.format(here=here)) for path in PATHS]
    expected = [os.path.realpath(path) for path in paths]
    with folders_resolved_once():
        assert [os.path.realpath(path) for path in [*paths, *paths]] == [*expected, *expected]
        with pytest.raises(OSError, match="no_folder"):
            os.path.realpath(here / "no_folder" / "no_file", strict=True)


def test_each_folder_is_resolved_once_within_the_block_only(here, monkeypatch):
    resolve, seen = os.path.realpath, []
    monkeypatch.setattr(os.path, "realpath", lambda path, **settings: (seen.append(path), resolve(path, **settings))[1])
    original = os.path.realpath
    with folders_resolved_once():
        kept = os.path.realpath
        assert [kept(f"{here}/{name}") for name in ("a", "b", "c")] == [str(here / name) for name in ("a", "b", "c")]
        assert seen == [str(here)]
    assert os.path.realpath is original
    assert kept(f"{here}/linked_folder/file") == str(here / "other" / "deep" / "file")
    assert seen == [str(here), f"{here}/linked_folder/file"]
