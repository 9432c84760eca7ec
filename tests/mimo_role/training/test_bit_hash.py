import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_role.training import bit_hash as module
from mimo_role.training.bit_hash import bit_hash


def tensor_of(raw):
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_each_bit_changes_the_hash(raw, data):
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    other = bytearray(raw)
    other[bit // 8] ^= 1 << bit % 8

    assert int(bit_hash(tensor_of(raw))) != int(bit_hash(tensor_of(other)))


@given(st.lists(st.floats(width=32), min_size=2, max_size=40), st.data())
def test_values_in_another_order_have_another_hash(values, data):
    one, two = (data.draw(st.integers(0, len(values) - 1)) for _ in range(2))
    tensor = torch.tensor(values)
    other = tensor.clone()
    other[one], other[two] = tensor[two], tensor[one]

    same_bits = torch.equal(tensor.view(torch.int32), other.view(torch.int32))
    assert (int(bit_hash(tensor)) == int(bit_hash(other))) == same_bits


@given(st.binary(max_size=200), st.integers(0, 9))
def test_the_hash_is_that_of_the_bits_wherever_they_are(raw, offset):
    whole = tensor_of(bytes(offset) + raw)

    assert int(bit_hash(whole[offset:])) == int(bit_hash(tensor_of(raw)))


def test_the_hash_does_not_depend_on_how_many_words_are_mixed_at_once(monkeypatch):
    tensor = torch.randn(1000, dtype=torch.float64)
    expected = int(bit_hash(tensor))
    monkeypatch.setattr(module, "_WORDS_AT_ONCE", 7)

    assert int(bit_hash(tensor)) == expected


def test_nans_of_equal_bits_are_equal_and_zeros_of_two_signs_are_not():
    nans = torch.tensor([math.nan, 1.0])

    assert int(bit_hash(nans)) == int(bit_hash(nans.clone()))
    assert int(bit_hash(torch.tensor([0.0]))) != int(bit_hash(torch.tensor([-0.0])))


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int64]
)
@pytest.mark.parametrize("shape", [(), (3,), (5, 3)])
def test_every_dtype_and_shape_has_a_hash(dtype, shape):
    tensor = torch.ones(shape).to(dtype)

    assert int(bit_hash(tensor)) == int(bit_hash(tensor.clone())) != int(bit_hash(torch.zeros(shape).to(dtype)))


def test_a_tensor_that_is_not_contiguous_has_the_hash_of_its_values():
    tensor = torch.randn(5, 3)

    assert int(bit_hash(tensor.T.contiguous().T)) == int(bit_hash(tensor))
