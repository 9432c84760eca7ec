import multiprocessing
import os
import signal
import time
from collections import namedtuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_role.host.node_dir import recording_file
from mimo_role.monitoring import ring as rings
from mimo_role.monitoring.records import MAX_NAMES, MAX_OPEN, RECORD, RECORDS_AT, Kind, parse, used_bytes
from mimo_role.monitoring.ring import OTHER_NAMES, Ring, copy, read, what

CAPACITY = 16


def small(path, capacity=CAPACITY):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "SMALLEST_BYTES", 0)
        patch.setattr(rings, "LARGEST_BYTES", RECORDS_AT + capacity * RECORD.size)
        return Ring.create(path, rank=3, ranks=1)


@pytest.fixture
def path(tmp_path):
    return recording_file(tmp_path, 3)


@pytest.fixture
def ring(path):
    return small(path)


def test_a_record_is_read_as_it_was_written(ring, path):
    name = ring.name_of("language.1")
    ring.add(what(Kind.FORWARD, name, 2, 1), 10, 25, 7, thread=4, flags=1)
    ring.add(what(Kind.SCALAR, ring.name_of("loss")), 30, 30, 7, 0.1)
    found = read(path)
    assert (found.rank, found.names, found.overwritten, found.lost) == (3, [OTHER_NAMES, "language.1", "loss"], 0, 0)
    assert found.records[0] == (10, 25, 7, 0.0, 2, -1, 1, 1, 4, Kind.FORWARD, 1, 0)
    assert (found.records[1].value, found.records[1].kind, found.records[1].number) == (0.1, Kind.SCALAR, 1)
    assert abs(found.wall_offset_ns - (time.time_ns() - time.monotonic_ns())) < 1e9


@given(st.integers(0, 5 * CAPACITY))
def test_the_last_records_are_kept(tmp_path_factory, count):
    path = tmp_path_factory.mktemp("ring") / "rank0.recording"
    ring = small(path)
    for number in range(count):
        ring.add(what(Kind.SPAN), number, number + 1, 0)
    found = read(path)
    left = range(max(0, count - CAPACITY), count)
    # The oldest might be overwritten at this moment: it is left out once the memory is full.
    assert [record.begin_ns for record in found.records] in (list(left), list(left)[1:])
    assert len(found.records) + found.overwritten == count


@given(st.lists(st.text(), max_size=40))
def test_names_have_numbers_and_are_cut_at_whole_characters(tmp_path_factory, names):
    path = tmp_path_factory.mktemp("ring") / "rank0.recording"
    ring = small(path)
    numbers = [ring.name_of(name) for name in names]
    found = read(path).names
    for name, number in zip(names, numbers, strict=True):
        assert name.encode().startswith(found[number].encode())
        assert len(found[number].encode()) > 60 or found[number] == name.rstrip("\0")


def test_names_without_a_place_are_counted_and_share_one(ring, path):
    numbers = [ring.name_of(str(number)) for number in range(MAX_NAMES + 5)]
    assert numbers[-6:] == [0] * 6
    found = read(path)
    assert (found.names[0], len(found.names), found.lost_names) == (OTHER_NAMES, MAX_NAMES, 6)


def test_spans_that_run_are_shown_until_they_end(ring, path):
    outer, inner = ring.name_of("data"), ring.name_of("decode")
    ring.open(what(Kind.SPAN, outer), 5, 1)
    ring.open(what(Kind.SPAN, inner), 6, 1)
    assert [(record.name, record.begin_ns, record.end_ns) for record in read(path).open] == [(outer, 5, 0), (inner, 6, 0)]
    ring.close(what(Kind.SPAN, inner), 6, 8, 1, 0.0, 0)
    assert [record.name for record in read(path).open] == [outer]
    ring.close(what(Kind.SPAN, outer), 5, 9, 1, 0.0, 0)
    assert read(path).open == []


def test_spans_inside_too_many_others_are_not_shown(ring, path):
    for depth in range(MAX_OPEN + 3):
        ring.open(what(Kind.SPAN), depth, 0)
    assert len(read(path).open) == MAX_OPEN
    for _ in range(MAX_OPEN + 3):
        ring.close(what(Kind.SPAN), 0, 1, 0, 0.0, 0)
    assert read(path).open == []


def test_the_part_in_use_is_a_whole_recording(ring, path):
    ring.add(what(Kind.SPAN, ring.name_of("data")), 1, 2, 0)
    data, _ = copy(path)
    assert used_bytes(data) == RECORDS_AT + RECORD.size
    assert parse(data[: used_bytes(data)]) == read(path)


@pytest.mark.parametrize("content", [b"", b"x", bytes(RECORDS_AT - 1), bytes(RECORDS_AT + 640)])
def test_another_file_is_no_recording(path, content):
    path.write_bytes(content)
    assert read(path) is None


def test_a_second_ring_at_a_path_leaves_the_first_one_its_memory(tmp_path, monkeypatch):
    path = recording_file(tmp_path, 0)
    first = Ring.create(path, 0, 1)
    monkeypatch.setattr(rings, "LARGEST_BYTES", rings.SMALLEST_BYTES)
    second = Ring.create(path, 0, 1)
    for number in range(70_000):  # more than the second has room for
        first.add(what(Kind.STEP), number, number, number)
    second.add(what(Kind.STEP), 1, 1, 5)
    assert [each.step for each in read(path).records] == [5]


def test_a_signals_handler_may_record_while_a_record_is_written(ring, path):
    handled = []

    def handler(*_):
        with ring._lock:
            handled.append(ring.add(what(Kind.STEP), 1, 1, 2))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ring._lock:
            signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [None]
    assert [each.step for each in read(path).records] == [2]


def test_there_is_no_ring_without_a_directory_or_with_little_memory(tmp_path, monkeypatch):
    assert Ring.create(tmp_path / "gone" / "rank0.recording", 0, 1) is None
    sizes = namedtuple("sizes", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: sizes(256, 4096))
    assert Ring.create(tmp_path / "rank0.recording", 0, 8) is None
    assert list(tmp_path.iterdir()) == []


def test_all_ranks_of_a_node_take_an_eighth_of_a_small_memory(tmp_path, monkeypatch):
    sizes = namedtuple("sizes", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda _: sizes(16 << 10, 4096))
    Ring.create(tmp_path / "rank0.recording", 0, 8)
    assert (tmp_path / "rank0.recording").stat().st_size == (64 << 20) // 64


def write_without_end(path, ready):
    ring = small(path)
    name = ring.name_of("x")
    ready.set()
    number = 0
    while True:
        # All fields of a record follow from one number.
        ring.open(what(Kind.SPAN, name, number % 1000, number % 7), number, number)
        about = what(Kind.FORWARD, name, number % 1000, 1, number % 97)
        ring.close(about, number, 2 * number, number, float(number), 0)
        number += 1


def is_whole(record, number):
    fields = record.begin_ns, record.end_ns, record.step, record.value, record.micro_batch, record.peer
    return fields == (number, 2 * number, number, float(number), number % 1000, number % 97)


@pytest.mark.timeout(120)
def test_a_reader_in_another_process_never_gets_a_torn_record(path):
    """The writer overwrites the 16 records again and again while this process reads them."""
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    writer = spawn.Process(target=write_without_end, args=(path, ready), daemon=True)
    writer.start()
    try:
        assert ready.wait(60)
        moments, records, opened = set(), 0, 0
        deadline = time.monotonic() + 60
        while (records < 5000 or opened < 500 or len(moments) < 10) and time.monotonic() < deadline:
            found = read(path)
            numbers = [record.number for record in found.records]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            assert all(is_whole(record, record.number) for record in found.records)
            for record in found.open:
                assert (record.step, record.micro_batch, record.micro_batches) == (
                    record.begin_ns,
                    record.begin_ns % 1000,
                    record.begin_ns % 7,
                )
            records += len(found.records)
            opened += len(found.open)
            moments.add(found.overwritten)
        assert records >= 5000
        assert opened >= 500
        assert len(moments) >= 10
    finally:
        writer.kill()
        writer.join()


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=600))
def test_damaged_memory_is_read_without_an_exception(tmp_path_factory, noise):
    path = tmp_path_factory.mktemp("ring") / "rank0.recording"
    ring = small(path)
    ring.add(what(Kind.SPAN), 1, 2, 0)
    data = bytearray(copy(path)[0])
    data[RECORDS_AT : RECORDS_AT + len(noise)] = noise
    parse(bytes(data))
