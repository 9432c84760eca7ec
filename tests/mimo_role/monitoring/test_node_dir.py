"""The folder that a node's ranks share with their agent."""

import pytest

from mimo_role.errors import ContextError
from mimo_role.monitoring import node_dir


def test_two_agents_of_one_id_have_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path)
    assert len({node_dir.make("20260101T000000-7") for _ in range(2)}) == 2
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in tmp_path.iterdir())


def test_without_memory_the_temporary_folder_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path))
    assert node_dir.make("7").parent == tmp_path


def test_no_place_for_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(node_dir, "_MEMORY", tmp_path / "none")
    monkeypatch.setattr(node_dir, "gettempdir", lambda: str(tmp_path / "none"))
    with pytest.raises(ContextError, match="No such file or directory; the ranks of this machine tell of themselves there"):
        node_dir.make("7")
