"""Values of fake tensors: those that follow from the script's numbers, and those that are assumed."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
    soft_margin_loss,
)

from mimo_role.rehearsal.fake_mode import QuickFakeMode
from mimo_role.rehearsal.fake_values import FakeTensorError
from mimo_role.rehearsal.memory import Memory
from tests.launcher.rehearse.accounts import NEEDS_ACCOUNTS


def run_fake(script):
    """Run a function with fake tensors; returns what was recorded."""
    memory = Memory(fake=True)
    memory.around(script)()
    return memory.as_dict()


def test_small_values_that_follow_from_numbers_are_known():
    def script():
        counts = torch.zeros(4, dtype=torch.int64)
        counts[1:3] += torch.arange(2) + 5
        row = counts.view(2, 2)[1]
        row.mul_(2)
        assert counts.tolist() == [0, 5, 12, 0]
        assert (counts > 0).nonzero().flatten().tolist() == [1, 2]
        assert torch.tensor([counts[1], 3]).tolist() == [5, 3]
        assert counts.numpy()[2] == np.asarray(counts)[2] == 12
        assert torch.randperm(7).sort().values.tolist() == list(range(7))

    assert run_fake(script)["values_assumed"] == {}


def test_what_is_overwritten_by_an_unknown_value_is_not_known_any_more():
    def script():
        values = torch.zeros(3)
        part = values[:1]
        part.copy_(torch.randn(1))
        assert values[1].item() == 1.0  # and not 0.0: the storage is not known

    assert run_fake(script)["values_assumed"] == {"item": 1}


def test_values_that_are_not_known_are_assumed_and_counted():
    def script():
        loss = torch.randn(100, 100).sum()
        assert loss.item() == 1.0
        assert not torch.isnan(loss).any()
        assert torch.isfinite(loss).all()
        assert torch.randn(2, 3).numpy().tolist() == [[1.0] * 3] * 2
        chosen = torch.randn(2000, 2)
        assert chosen[chosen[:, 0] > 0].shape == (2000, 2)
        assert chosen.masked_select(chosen > 0).shape == (4000,)

    assert run_fake(script)["values_assumed"] == {"item": 3, "numpy": 1, "index": 1, "masked_select": 1}


def test_a_mask_that_follows_from_numbers_selects_as_many_elements_of_unknown_ones():
    def script():
        tokens = torch.arange(40).reshape(2, 20) % 5
        mask, hidden = tokens == 3, torch.randn(2, 20, 600)
        assert hidden[mask].shape == (8, 600)
        assert hidden[mask, :].shape == (8, 600)
        assert hidden[:, mask[0]].shape == (2, 4, 600)
        assert hidden[0, mask[0], torch.arange(4)].shape == (4,)
        assert hidden.masked_select(mask[..., None]).shape == (8 * 600,)
        hidden[mask] = torch.randn(8, 600)

    assert run_fake(script)["values_assumed"] == {}


def test_samples_that_are_drawn_from_a_generator_of_the_script_are_known():
    def sizes():
        random = torch.Generator().manual_seed(3)
        return [torch.randint(100, (2,), generator=random).tolist(), torch.rand(2, generator=random).tolist()]

    found = []
    assert run_fake(lambda: found.append(sizes()))["values_assumed"] == {}
    assert found == [sizes()]


def test_modules_are_converted_and_copied():
    def script():
        with torch.device("meta"):
            model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        other = copy.deepcopy(model).to_empty(device="cpu").to(torch.bfloat16)
        assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
        assert {parameter.device.type for parameter in other.parameters()} == {"cpu"}
        other(torch.randn(3, 4, dtype=torch.bfloat16)).sum().backward()
        assert other[0].weight.grad.shape == (4, 4)

    assert run_fake(script)["parameters"] == 2 * 2 * (16 + 4)


def test_a_model_larger_than_memory_takes_none():
    def script():
        with torch.no_grad():
            nn.Linear(1 << 20, 1 << 20, bias=False)(torch.ones(1, 1 << 20))

    found = run_fake(script)
    assert found["peak_bytes"] == 4 * ((1 << 40) + 2 * (1 << 20))
    assert found["parameters"] == 4 << 40
    assert next(iter(found["modules"])) == "Linear"


@pytest.mark.parametrize(
    "loss", [mse_loss, smooth_l1_loss, soft_margin_loss, binary_cross_entropy, l1_loss, huber_loss, kl_div]
)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_loss_takes_the_memory_that_its_kernel_leaves_it(loss, reduction):
    def size():
        return loss(torch.rand(7, 10), torch.rand(7, 10), reduction=reduction).untyped_storage().nbytes()

    found = []
    run_fake(lambda: found.append(size()))
    assert found == [size()]


def test_results_are_the_same_when_an_operator_is_repeated():
    def script():
        for _ in range(2):
            for width in (3, 4):
                assert torch.zeros(2, width).t().contiguous().shape == (width, 2)
                assert torch.cat([torch.zeros(width), torch.zeros(1)]).shape == (width + 1,)
                assert (torch.zeros(width) + 1).dtype == torch.float32
                assert (torch.zeros(width, dtype=torch.int64) + 1).dtype == torch.int64
                assert (torch.zeros(width, dtype=torch.int64) + 1.0).dtype == torch.float32
                whole = torch.zeros(width, 5)
                part = whole[1:, 2]
                assert (part.shape, part.stride(), part.storage_offset()) == ((width - 1,), (5,), 7)
                assert part.untyped_storage()._cdata == whole.untyped_storage()._cdata

    run_fake(script)


def test_a_repeated_operator_takes_the_short_way():
    mode = QuickFakeMode()
    with mode:
        whole = torch.empty(4, 5)
        before = QuickFakeMode.cache_info().hits
        for _ in range(3):
            whole.sum(1)
            whole.view(5, 4)
    assert QuickFakeMode.cache_info().hits >= before + 4
    assert {key[0] for key in mode._keys} >= {torch.ops.aten.sum.dim_IntList, torch.ops.aten.view.default}


@NEEDS_ACCOUNTS
def test_a_result_whose_shape_no_rule_gives_is_refused():
    with pytest.raises(FakeTensorError, match="depends on values"):
        run_fake(lambda: torch._unique(torch.randn(50, 50)))
