"""Whole lines of a file that is still being written."""

from contextlib import closing

import pytest

from launcher.logs.file_tail import FileTail


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def tail(path):
    with closing(FileTail(path)) as tail:
        yield tail


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def test_a_file_that_does_not_exist_yet_has_no_lines(path, tail):
    assert list(tail.lines()) == []
    append(path, b"one\n")
    assert list(tail.lines()) == [b"one"]


def test_a_line_is_returned_once_its_end_has_been_written(path, tail):
    append(path, b"one\ntw")
    assert list(tail.lines()) == [b"one"]
    append(path, b"o\nthree")
    assert list(tail.lines()) == [b"two"]
    assert list(tail.last_line()) == [b"three"]
    assert list(tail.last_line()) == []


def test_reading_continues_after_the_file_was_closed(path, tail):
    append(path, b"one\ntw")
    assert list(tail.lines()) == [b"one"]
    tail.close()
    append(path, b"o\n")
    assert list(tail.lines()) == [b"two"]


def test_no_more_than_the_limit_is_read(path, tail):
    append(path, b"one\ntwo\nthree\n")
    assert list(tail.lines(limit=9)) == [b"one", b"two"]
    assert list(tail.lines(limit=9)) == [b"three"]


def test_an_open_file_is_read_after_its_removal(path, tail):
    append(path, b"one\n")
    assert list(tail.lines()) == [b"one"]
    with path.open("ab") as file:
        path.unlink()
        file.write(b"two\n")
    assert list(tail.lines()) == [b"two"]


@pytest.mark.parametrize("limit", [None, *range(1, 12)])
def test_skipped_bytes_are_left_out_however_they_are_read(path, limit):
    append(path, b"one\nTRACE\nBACK\ntwo\n")
    with closing(FileTail(path, lambda: (4, 15))) as tail:
        found = [line for _ in range(20) for line in tail.lines(limit)]
    assert found == [b"one", b"two"]
