import mmap
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.host.node_dir import recording_file
from mimo_role.monitoring import ring as rings
from mimo_role.monitoring.records import COUNTS, COUNTS_AT, DEPTH, DEPTH_AT, RECORD, RECORDS_AT, Kind
from mimo_role.monitoring.ring import Ring, what
from mimo_role.monitoring.ring_reader import RingReader

CAPACITY = 16


def small(path, capacity=CAPACITY):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rings, "SMALLEST_BYTES", 0)
        patch.setattr(rings, "LARGEST_BYTES", RECORDS_AT + capacity * RECORD.size)
        return Ring.create(path, rank=3, ranks=1)


def write(ring, count, first=0):
    for number in range(first, first + count):
        ring.add(what(Kind.SPAN, ring.name_of(f"span {number % 5}")), number, number + 1, 0)


@given(st.lists(st.integers(0, 3 * CAPACITY), max_size=12))
def test_each_record_is_read_once_or_counted_as_overwritten(tmp_path_factory, counts):
    path = recording_file(tmp_path_factory.mktemp("ring"), 3)
    ring, reader, written, seen, lost = small(path), RingReader(path), 0, [], 0
    for count in counts:
        write(ring, count, written)
        written += count
        found = reader.read()
        assert all(found.names[each.name] == f"span {each.number % 5}" for each in found.records)
        seen += [each.number for each in found.records]
        lost += found.overwritten
    reader.close()
    assert len(seen) + lost == written
    assert seen == sorted(set(seen))
    assert not counts or written == 0 or counts[-1] == 0 or seen[-1] == written - 1


def test_there_is_nothing_before_the_rank_has_begun(tmp_path):
    reader = RingReader(recording_file(tmp_path, 3))
    assert reader.read() is None
    recording_file(tmp_path, 3).touch()
    assert reader.read() is None


def test_what_a_rank_has_left_is_read_after_its_file_was_removed(tmp_path):
    path = recording_file(tmp_path, 3)
    ring, reader = small(path), RingReader(path)
    assert reader.read().records == []
    write(ring, 3)
    path.unlink()
    assert [each.begin_ns for each in reader.read().records] == [0, 1, 2]


def test_a_second_ring_of_a_rank_is_read_from_its_beginning(tmp_path):
    path = recording_file(tmp_path, 3)
    reader = RingReader(path)
    write(small(path), 5)
    assert len(reader.read().records) == 5
    write(small(path), 2, 100)
    found = reader.read()
    assert ([each.begin_ns for each in found.records], found.overwritten) == ([100, 101], 0)


def _write_fast(path, count):
    ring = small(path, 64)
    for number in range(count):
        ring.add(what(Kind.SCALAR, 0), number, number, number, float(number))


def _write_spans(path, count):
    ring, span = small(path), what(Kind.SPAN, 0)
    for number in range(count):
        ring.open(span, number, 0)
        ring.add(span, number, number, 0)
        ring.close(span, number, number, 0, 0.0, 0)
    ring.lose()


@pytest.mark.timeout(60)
def test_counts_are_never_seen_half_written(tmp_path):
    path = recording_file(tmp_path, 3)
    process = multiprocessing.get_context("fork").Process(target=_write_spans, args=(path, 100_000))
    process.start()
    while not path.exists() or path.stat().st_size < RECORDS_AT:
        pass
    last = (0, 0, 0, 0)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        while last[0] < 200_000:
            counts = COUNTS.unpack_from(memory, COUNTS_AT)
            assert all(was <= now for was, now in zip(last, counts, strict=True)), (last, counts)
            last = counts
            changes, depth = DEPTH.unpack_from(memory, DEPTH_AT)
            assert depth in (0, 1)
            assert changes >= last[0] - 1
        process.join()
        assert COUNTS.unpack_from(memory, COUNTS_AT) == (200_000, 1, 0, 1)
    assert process.exitcode == 0


@pytest.mark.timeout(60)
def test_records_are_whole_while_the_rank_writes(tmp_path):
    path = recording_file(tmp_path, 3)
    process = multiprocessing.get_context("fork").Process(target=_write_fast, args=(path, 200_000))
    process.start()
    reader, seen, lost, last = RingReader(path), 0, 0, -1
    while process.is_alive() or seen + lost < 200_000:
        if (found := reader.read()) is None:
            continue
        for each in found.records:
            assert each.begin_ns == each.end_ns == each.step == each.number == int(each.value) > last
            last = each.number
        seen, lost = seen + len(found.records), lost + found.overwritten
    process.join()
    assert (process.exitcode, seen + lost) == (0, 200_000)
    assert seen > 0
