import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.errors import ContextError
from mimo_role.host import node_dir


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Two folders in place of the shared memory and the temporary folder; and their free bytes, which may be set."""
    free = {}
    for name in ("memory", "temporary"):
        (tmp_path / name).mkdir()
        free[str(tmp_path / name)] = 1 << 30
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path / "memory")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path / "temporary"))
    existing = os.statvfs

    def statvfs(path):
        existing(path)
        return SimpleNamespace(f_bavail=free[str(path)], f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return free


def fill(places, name, left=0):
    (path,) = [path for path in places if path.endswith(name)]
    places[path] = left


def test_agents_with_equal_ids_get_separate_node_directories(places, tmp_path):
    assert len({node_dir.create("20260101T000000-7", 2) for _ in range(2)}) == 2
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (tmp_path / "memory").iterdir())


def test_the_temporary_directory_is_used_without_shared_memory(places, tmp_path):
    (tmp_path / "memory").rmdir()
    assert node_dir.create("7", 2).parent == tmp_path / "temporary"


@given(ranks=st.integers(1, 10_000))
def test_memory_is_used_if_it_has_room_for_the_files_of_all_ranks(ranks):
    with pytest.MonkeyPatch.context() as patch:
        needed = (1 + ranks) * (32 << 10)
        made = []
        patch.setattr(node_dir, "mkdtemp", lambda **names: made.append(names["dir"]) or "/made")
        patch.setattr(node_dir, "gettempdir", lambda: "/elsewhere")
        for free, place in ((needed, "/dev/shm"), (needed - 1, "/elsewhere")):
            bytes_of = {"/dev/shm": free, "/elsewhere": 1 << 40}
            patch.setattr(node_dir, "_room", lambda path, bytes_of=bytes_of: bytes_of[str(path)])
            node_dir.create("7", ranks)
            assert str(made[-1]) == place


def test_an_error_names_each_place_and_what_is_wrong_with_it(places, tmp_path):
    fill(places, "memory")
    (tmp_path / "temporary").rmdir()
    with pytest.raises(ContextError) as caught:
        node_dir.create("7", 2)
    assert str(caught.value) == (
        "the node directory, for files that ranks and agent share, cannot be created: "
        f"{tmp_path / 'memory'}: No space left on device; {tmp_path / 'temporary'}: No such file or directory; set TMPDIR"
    )


def test_a_temporary_folder_in_the_shared_memory_is_named_once(places, tmp_path, monkeypatch):
    fill(places, "memory")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path / "memory"))
    with pytest.raises(ContextError) as caught:
        node_dir.create("7", 2)
    assert str(caught.value).count("No space left on device") == 1


def test_what_an_attempt_has_left_is_removed_but_for_a_notice(places):
    folder = node_dir.create("7", 2)
    for file in (node_dir.heartbeat_file(folder, 0), node_dir.terminal_lock(folder), node_dir.notice_file(folder)):
        file.touch()
    node_dir.clear(folder)
    assert list(folder.iterdir()) == [node_dir.notice_file(folder)]
