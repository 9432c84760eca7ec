"""The order of samples, and its division into steps and micro-batches."""

import json
from dataclasses import replace
from itertools import chain, islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_role import DataError, GlobalBatchSampler
from mimo_role.data.global_batch import Position


@st.composite
def samplers(draw, **fixed):
    size = draw(st.integers(1, 12))
    drop_last = draw(st.booleans())
    settings = {
        "length": draw(st.integers(size if drop_last else 1, 60)),
        "global_batch_size": size,
        "micro_batches": draw(st.integers(1, size)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(-(2**40), 2**70)),
        "drop_last": drop_last,
    }
    return GlobalBatchSampler(**{**settings, **fixed})


def steps_of(sampler, position=None):
    """All further steps, over epochs."""
    position = position or Position()
    while True:
        for batch in sampler.batches(position):
            position = batch.following
            yield batch


def indices_of(batches):
    return list(chain.from_iterable(chain.from_iterable(batch.micro_batches) for batch in batches))


@given(samplers(), st.integers(0, 3))
def test_an_epoch_has_every_sample_once_but_for_those_that_are_dropped(sampler, epoch):
    seen = indices_of(sampler.batches(Position(epoch)))
    dropped = sampler.length % sampler.global_batch_size if sampler.drop_last else 0
    assert len(seen) == len(set(seen)) == sampler.length - dropped
    assert set(seen) <= set(range(sampler.length))
    assert sampler.shuffle or seen == list(range(sampler.length - dropped))


@given(samplers())
def test_all_steps_are_full_but_an_epochs_last_and_micro_batches_differ_by_one_at_most(sampler):
    batches = list(sampler.batches(Position()))
    assert len(batches) == sampler.steps_from(Position())
    assert all(batch.samples == sampler.global_batch_size for batch in batches[:-1])
    for batch in batches:
        sizes = [len(indices) for indices in batch.micro_batches]
        assert len(sizes) == min(sampler.micro_batches, batch.samples)
        assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


@given(samplers(), st.integers(0, 20))
def test_a_resume_at_any_step_equals_a_run_without_interruption(sampler, steps):
    batches = steps_of(sampler)
    position = ([Position(), *(batch.following for batch in islice(batches, steps))])[-1]
    state = json.loads(json.dumps(sampler.state_dict(position)))
    resumed = steps_of(sampler, replace(sampler).position_in(state))
    assert list(islice(resumed, 8)) == list(islice(batches, 8))


@given(st.data(), samplers(drop_last=False), st.integers(0, 10))
def test_a_resume_with_steps_of_another_size_continues_with_the_very_next_sample(data, sampler, steps):
    before = list(islice(steps_of(sampler), steps))
    position = before[-1].following if before else Position()
    size = data.draw(st.integers(1, 20))
    other = replace(sampler, global_batch_size=size, micro_batches=data.draw(st.integers(1, size)))
    after = list(islice(steps_of(other, other.position_in(sampler.state_dict(position))), 10))
    seen = indices_of([*before, *after])
    assert seen == indices_of(islice(steps_of(sampler), len(seen)))[: len(seen)]
    assert [batch.position.steps for batch in after] == list(range(steps, steps + 10))


@given(samplers(length=40, shuffle=True))
def test_epochs_and_seeds_have_orders_of_their_own_whatever_the_size_of_steps(sampler):
    def order(sampler, epoch):
        return indices_of(replace(sampler, drop_last=False).batches(Position(epoch)))

    assert order(sampler, 0) != order(sampler, 1)
    assert order(sampler, 0) != order(replace(sampler, seed=sampler.seed + 1), 0)
    assert order(sampler, 1) == order(replace(sampler, global_batch_size=1, micro_batches=1), 1)


def test_the_order_draws_from_a_generator_of_its_own():
    before = torch.get_rng_state()
    list(GlobalBatchSampler(length=10, global_batch_size=2).batches(Position(5)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"length": 0}, "length=0; use 1 or more", id="no samples"),
        pytest.param({"length": 4.0}, "length=4.0 is not a whole number", id="a length that is not whole"),
        pytest.param({"global_batch_size": 0}, "global_batch_size=0; use 1 or more", id="empty steps"),
        pytest.param({"micro_batches": 5}, "global_batch_size=4 samples has at most", id="empty micro-batches"),
        pytest.param({"length": 3, "drop_last": True}, "a dataset of 3 samples has no step", id="no step"),
        pytest.param({"seed": "one"}, "seed='one' is not a whole number", id="seed"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        GlobalBatchSampler(**{"length": 8, "global_batch_size": 4, **settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"length": 9}, "state is of length=9, but the sampler has 8", id="length"),
        pytest.param({"seed": 1}, "state is of seed=1, but the sampler has 0", id="seed"),
        pytest.param({"shuffle": False}, "Use shuffle=False, or do not load", id="shuffle"),
        pytest.param({"samples": 9}, "samples=9 of a dataset of 8", id="behind the end"),
        pytest.param({"epoch": -1}, "epoch=-1; use 0 or more", id="negative"),
        pytest.param({"order": "0"}, "this release of torch shuffles in another order", id="another shuffle"),
    ],
)
def test_a_state_of_another_order_is_refused(change, message):
    sampler = GlobalBatchSampler(length=8, global_batch_size=4)
    with pytest.raises(DataError, match=message):
        sampler.position_in(sampler.state_dict(Position(0, 4, 1)) | change)


def test_a_state_without_all_its_entries_is_refused():
    with pytest.raises(DataError, match="state has no length, order, samples, seed, shuffle, steps"):
        GlobalBatchSampler(length=8, global_batch_size=4).position_in({"epoch": 1})
