"""A file that is there as a whole or not at all."""

import pytest

from mimo_role.host.files import write_whole


def test_a_file_takes_the_place_of_the_one_before(tmp_path):
    for text in ("one", "zwei é"):
        write_whole(tmp_path / "a.json", text)
        assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "full").touch()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "a.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
