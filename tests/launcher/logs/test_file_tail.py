"""Whole lines of a file that is still being written."""

import os
import tracemalloc
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
    assert list(tail.last_lines()) == [b"three"]
    assert list(tail.last_lines()) == []


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


def test_no_byte_is_read_twice(path, tail, monkeypatch):
    read, pread = [], os.pread

    def counted(descriptor, count, position):
        read.append((position, len(data := pread(descriptor, count, position))))
        return data

    monkeypatch.setattr(os, "pread", counted)
    for _ in range(30):
        append(path, b"\r 50%|#####     |" * 10_000)
        assert list(tail.lines(limit=100_000)) == []
    assert list(tail.lines()) == []
    ends = [position + count for position, count in read]
    assert [position for position, _ in read] == [0, *ends[:-1]]
    assert ends[-1] == path.stat().st_size


def test_a_long_bar_takes_little_memory(path, tail):
    append(path, b"\r 50%|#####     |" * 1_000_000)
    tracemalloc.start()
    assert list(tail.lines()) == []
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000
    assert list(tail.last_lines()) == [b" 50%|#####     |"]


@pytest.mark.parametrize("after", [b"three\n", b""])
def test_a_file_that_was_truncated_is_read_from_its_start(path, tail, after):
    append(path, b"one\ntw")
    assert list(tail.lines()) == [b"one"]
    path.write_bytes(b"")
    assert list(tail.lines()) == [b"tw"]
    append(path, after)
    assert list(tail.lines()) == after.splitlines()


def test_a_writer_that_does_not_append_leaves_a_hole_after_a_truncation(path, tail):
    with path.open("wb", buffering=0) as file:
        file.write(b"\r 50%" * 1000)
        assert list(tail.lines()) == []
        os.truncate(path, 0)
        assert list(tail.lines()) == [b" 50%"]
        file.write(b"\r 60%\ndone\n")
    assert list(tail.lines()) == [b" 60%", b"done"]


def test_a_file_that_was_replaced_by_a_shorter_one_is_read_from_its_start(path, tail):
    append(path, b"one\n")
    assert list(tail.lines()) == [b"one"]
    tail.close()
    path.unlink()
    append(path, b"2\n")
    assert list(tail.lines()) == [b"2"]


def test_a_file_that_cannot_be_opened_yet_is_tried_again(path, tail, monkeypatch):
    append(path, b"one\n")
    with monkeypatch.context() as patched:
        patched.setattr(type(path), "open", lambda *_, **__: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        assert list(tail.lines()) == []
        assert tail.unread() == 0
    assert tail.unread() == 4
    assert list(tail.lines()) == [b"one"]


def test_a_file_that_cannot_be_read_for_a_moment_is_read_later(path, tail, monkeypatch):
    append(path, b"one\n")
    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
        assert list(tail.lines()) == []
    assert list(tail.lines()) == [b"one"]


def test_a_traceback_behind_a_bar_is_left_out(path):
    append(path, b"\r 50%Traceback\nValueError\n")
    with closing(FileTail(path, lambda: (5, 26))) as tail:
        assert list(tail.lines()) == []
        assert list(tail.last_lines()) == [b" 50%"]
