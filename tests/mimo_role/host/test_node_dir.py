import pytest

from mimo_role.errors import ContextError
from mimo_role.host import node_dir


def test_agents_with_equal_ids_get_separate_node_directories(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path)
    assert len({node_dir.create("20260101T000000-7", 8) for _ in range(2)}) == 2
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in tmp_path.iterdir())


def test_the_temporary_directory_is_used_without_shared_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path))
    assert node_dir.create("7", 8).parent == tmp_path


def test_an_error_names_the_parent_that_does_not_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path / "none"))
    with pytest.raises(ContextError, match="none: No such file or directory; set TMPDIR"):
        node_dir.create("7", 8)
