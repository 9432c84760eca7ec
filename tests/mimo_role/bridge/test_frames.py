import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.bridge import frames
from mimo_role.bridge.frames import PREFIX, BatchHeader, BatchKey, Edge, FrameKind, Position, Returns, Want
from mimo_role.bridge.message_tags import BRIDGES, Purpose

RANKS = st.integers(0, (1 << 31) - 1)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1)
COUNTS = st.integers(-1, (1 << 31) - 1)
KEYS = st.builds(BatchKey, st.integers(0, BRIDGES - 1), st.sampled_from(Purpose), NUMBERS, st.integers(0, (1 << 31) - 1))
POSITIONS = st.builds(Position, NUMBERS, NUMBERS, COUNTS, COUNTS, COUNTS)
HEADERS = st.builds(
    BatchHeader,
    KEYS,
    POSITIONS,
    st.sampled_from(Returns),
    st.booleans(),
    st.booleans(),
    st.integers(0, (1 << 63) - 1),
    st.binary(max_size=200),
)


def content_of(frame, kind):
    """A frame without its prefix, which must be right."""
    assert PREFIX.unpack_from(frame) == (len(frame) - PREFIX.size, kind)
    return frame[PREFIX.size :]


@given(HEADERS)
def test_a_header_survives_packing(header):
    found = BatchHeader.unpacked(content_of(header.packed(), FrameKind.BATCH))
    assert found == header
    assert isinstance(found.key.purpose, Purpose)
    assert isinstance(found.returns, Returns)


@given(HEADERS, HEADERS)
def test_different_headers_have_different_bytes(one, other):
    assert (one.content() == other.content()) == (one == other)


@given(KEYS)
def test_a_receipt_has_its_batch(key):
    assert frames.key_of(content_of(frames.taken(key), FrameKind.TAKEN)) == key


@given(st.lists(st.tuples(RANKS, KEYS, st.booleans()), min_size=1, max_size=32), RANKS)
def test_a_path_leads_from_rank_to_rank_to_its_receiver(steps, receiver):
    awaited = [*(rank for rank, *_ in steps[1:]), receiver]
    path = tuple(Edge(rank, Want(peer, key, is_receipt)) for (rank, key, is_receipt), peer in zip(steps, awaited, strict=True))
    assert frames.path_of(content_of(frames.blocked(path), FrameKind.BLOCKED), receiver) == path


@given(st.integers(0, BRIDGES - 1), NUMBERS, st.lists(NUMBERS, max_size=50))
def test_the_numbers_of_an_exchange_survive_packing(bridge, number, values):
    assert frames.spec_of(content_of(frames.spec(bridge, number, values), FrameKind.SPEC)) == (bridge, number, values)


@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.booleans()), max_size=50))
def test_the_transfers_to_complete_survive_packing(transfers):
    assert frames.transfers_of(content_of(frames.release(transfers), FrameKind.RELEASE)) == transfers


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_failure_keeps_its_text(text):
    assert content_of(frames.failed(text), FrameKind.FAILED).decode() == text


@pytest.mark.parametrize(
    ("one", "other", "fits"),
    [
        (Position(), Position(4, 2, 1, 3), True),
        (Position(4, 2, 1, 3), Position(4, 2, 1, 3), True),
        (Position(step=4), Position(step=5), False),
        (Position(-1, 2, 1, 3), Position(-1, 2, 1, 4), False),
        (Position(4, -1, -1, -1), Position(-1, 2, 1, 4), True),
    ],
)
def test_positions_fit_if_known_values_are_equal(one, other, fits):
    assert one.fits(other) is fits
    assert other.fits(one) is fits


def test_a_position_as_text():
    assert str(Position()) == ""
    assert str(Position(4, 2, 0, 3)) == "step 4, micro-batch 0 of 3"
    assert str(Position(-1, 2, 0, 3)) == "scheduled step 2, micro-batch 0 of 3"
