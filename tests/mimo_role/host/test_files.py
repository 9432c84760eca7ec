import pytest

from mimo_role.host.files import write_whole


def test_a_file_is_replaced(tmp_path):
    for text in ("one", "zwei é"):
        write_whole(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_no_temporary_file_is_left_if_writing_fails(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "full").touch()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "a.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
