"""What ranks may and may not have under one name."""

import re

import pytest
import torch
from torch import nn

from mimo_role import CheckpointError
from mimo_role.checkpoint.contents import difference
from mimo_role.checkpoint.inventory import Inventory, digests_of, settings_of

SHARD = ((2,), ("S(0)",), (1,))


def inventory(**changes):
    found = {
        "step": 1,
        "forms": {"language.weight": ((4, 5), "torch.float32")},
        "digests": {("language.weight", ()): 17, ("language.part", SHARD): 3},
        "settings": {"language.weight": {"lr": 0.1}},
        "extra_digest": "",
    }
    return Inventory(**(found | changes))


def label_of(rank):
    return f"rank {rank}"


def test_the_settings_of_all_ranks_are_put_together():
    other = inventory(forms={"vision.weight": ((2,), "torch.float32")}, settings={"vision.weight": {"lr": 0.2}}, digests={})
    assert settings_of([inventory(), other, inventory()], label_of) == {
        "language.weight": {"lr": 0.1},
        "vision.weight": {"lr": 0.2},
    }


def test_other_parts_of_one_parameter_are_not_compared():
    settings_of([inventory(), inventory(digests={("language.part", ((2,), ("S(0)",), (0,))): 4})], label_of)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({"step": 2}, "the step is 1 on rank 0 and 2 on rank 1", id="step"),
        pytest.param(
            {"forms": {"language.weight": ((2, 5), "torch.float32")}},
            "language.weight is ((4, 5), 'torch.float32') on rank 0 and ((2, 5), 'torch.float32') on rank 1: one name has to "
            "be one tensor",
            id="shape",
        ),
        pytest.param(
            {"digests": {("language.weight", ()): 18}},
            "parameters of one name differ: language.weight on rank 0 and rank 1. A checkpoint has one of them only",
            id="bits of a copy",
        ),
        pytest.param({"digests": {("language.part", SHARD): 18}}, "language.part on rank 0 and rank 1", id="bits of a part"),
        pytest.param({"settings": {"language.weight": {"lr": 0.2}}}, ": settings of the optimizer", id="settings"),
    ],
)
def test_what_differs_under_one_name_is_an_error_that_names_the_ranks(changes, message):
    with pytest.raises(CheckpointError, match=re.escape(message)):
        settings_of([inventory(), inventory(**changes)], label_of)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.int8])
def test_a_change_of_one_element_changes_the_digest(dtype):
    values = torch.arange(1, 8).to(dtype)
    changed = values.clone()
    changed[3] = 2 * changed[3].to(torch.complex64) if dtype.is_complex else 2
    found = [digests_of({nn.Parameter(each, requires_grad=False): ["a", "b"]}) for each in (values, values.clone(), changed)]
    assert found[0] == found[1] != found[2]
    assert found[0].keys() == {("a", ()), ("b", ())}


def test_the_digest_of_nothing_is_nothing():
    assert digests_of({nn.Parameter(torch.zeros(0)): ["empty"]}) == {}


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        pytest.param({"a": [1, 2.5, "x"]}, {"a": [1, 2.5, "x"]}, None, id="equal"),
        pytest.param({"a": [1, 2]}, {"a": [1, 3]}, "extra['a'][1]: 2 and 3", id="number"),
        pytest.param({"a": 1, "b": 2}, {"b": 2, "a": 1}, None, id="other order"),
        pytest.param({"a": torch.ones(2)}, {"a": torch.ones(2)}, None, id="equal tensors"),
        pytest.param({"a": torch.ones(2)}, {"a": torch.zeros(2)}, "extra['a']: tensors that differ", id="tensor"),
        pytest.param((1,), [1], "extra: (1,) and [1]", id="type"),
        pytest.param(float("nan"), float("nan"), None, id="nan"),
        pytest.param({"a": 1}, {"b": 1}, "extra: {'a': 1} and {'b': 1}", id="keys"),
    ],
)
def test_the_first_difference_of_two_values_is_named(own, other, expected):
    assert difference(own, other, "extra") == expected
