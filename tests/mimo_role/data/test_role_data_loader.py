"""The data loader of each rank of a layout, all in this process."""

import copy
import json
import random
from collections import Counter, defaultdict
from itertools import chain, islice, repeat

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import checkpoint

from mimo_role import DataError, GlobalBatchSampler, RoleDataLoader, Topology, balanced_lanes
from mimo_role.data.global_batch import Position
from tests.mimo_role.data.datasets import LAYOUTS, Numbers, indices_and_noise, place

SAMPLER = GlobalBatchSampler(length=23, global_batch_size=6, micro_batches=2, seed=3)
ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")


def make(topology, rank=0, dataset=None, sampler=SAMPLER, **settings):
    settings = {"collate_fn": indices_and_noise, "check_every": 0, **settings}
    dataset = Numbers(sampler.length) if dataset is None else dataset
    return RoleDataLoader(place(topology, rank), dataset, sampler, **settings)


def loaders(topology, state=None, sampler=SAMPLER, **settings):
    found = [make(topology, rank, sampler=sampler, **settings) for rank in range(topology.world_size)]
    for loader in found if state else ():
        loader.load_state_dict(state)
    return found


def steps(loader):
    """All further steps, over epochs."""
    return chain.from_iterable(repeat(loader))


class Counts:
    """What every module of a job has seen."""

    def __init__(self):
        self.seen = defaultdict(Counter)
        """By module and epoch, how often it has seen each sample."""

    def train(self, loaders, steps_run):
        """Run some steps on all ranks, and check each micro-batch; all ranks then have the same state, which is returned."""
        for micro_batches in zip(*(islice(steps(loader), steps_run) for loader in loaders), strict=True):
            for of_ranks in zip(*micro_batches, strict=True):
                self._count(of_ranks, [loader._ctx for loader in loaders])
        states = [loader.state_dict() for loader in loaders]
        assert all(state == states[0] for state in states)
        return json.loads(json.dumps(states[0]))

    def _count(self, of_ranks, places):
        first = of_ranks[0]
        identities = {(each.epoch, each.step, each.number, each.indices, each.samples_in_step) for each in of_ranks}
        assert len(identities) == 1
        lanes = defaultdict(dict)
        for own, at in zip(of_ranks, places, strict=True):
            for module, read in own.data.items():
                lane = at.topology.grids[module].coords(at.rank)["dp"]
                # Ranks of a lane have the very same samples, random numbers included.
                assert lanes[module].setdefault(lane, read) == read
        assert sorted(lanes) == sorted(places[0].topology.grids)
        for module, own in lanes.items():
            seen = [index for lane in sorted(own) for index in own[lane][0]]
            assert seen == list(first.indices)
            assert len(seen) == len(first)
            self.seen[module, first.epoch].update(seen)


ONCE = Counter(range(SAMPLER.length))


@pytest.mark.parametrize("topology", LAYOUTS.values(), ids=LAYOUTS)
def test_every_module_sees_every_sample_once_an_epoch_in_the_same_micro_batch_over_restarts(topology):
    counts, state = Counts(), None
    for steps_run in (3, 4, 1, 4):  # 4 steps an epoch
        state = counts.train(loaders(topology, state), steps_run)
    assert counts.seen == {(module, epoch): ONCE for module in topology.grids for epoch in range(3)}


def test_a_job_resumes_in_another_layout_with_the_very_next_sample():
    counts, state = Counts(), None
    for topology, steps_run in zip([*LAYOUTS.values(), LAYOUTS["apart"]], (1, 3, 2, 1, 4, 1), strict=True):
        state = counts.train(loaders(topology, state), steps_run)
    assert all(counts.seen[module, epoch] == ONCE for module in ("vision", "language") for epoch in range(3))


def test_another_global_batch_size_takes_over_at_the_end_of_a_step():
    counts = Counts()
    state = counts.train(loaders(LAYOUTS["uneven"]), 2)
    larger = GlobalBatchSampler(length=23, global_batch_size=8, micro_batches=4, seed=3)
    state = counts.train(loaders(LAYOUTS["apart"], state, larger), 2)
    assert counts.seen == {("vision", 0): ONCE, ("language", 0): ONCE}
    assert (state["epoch"], state["samples"], state["steps"]) == (1, 0, 4)


@settings(max_examples=25)
@given(st.sampled_from(list(LAYOUTS.values())), st.integers(1, 30), st.integers(1, 9), st.integers(0, 12), st.data())
def test_every_module_sees_the_samples_of_the_sampler(topology, length, size, steps_run, data):
    sampler = GlobalBatchSampler(length=length, global_batch_size=size, micro_batches=data.draw(st.integers(1, size)))
    counts = Counts()
    state = counts.train(loaders(topology, None, sampler), steps_run)
    counts.train(loaders(topology, state, sampler), len(make(topology, sampler=sampler)))
    complete = 1 + steps_run // sampler.steps_from(Position())
    assert all(counts.seen[module, epoch] == Counter(range(length)) for module in topology.grids for epoch in range(complete))


def test_random_augmentation_depends_on_seed_epoch_and_index_only():
    """Not on the layout, the size of steps, the samples read before, or what the process has drawn."""

    def draws(topology, sampler, epochs=2):
        found = {}
        for micro in chain.from_iterable(chain.from_iterable(islice(repeat(make(topology, sampler=sampler)), epochs))):
            random.random()
            torch.rand(1)
            for indices, drawn, _ in micro.data.values():
                for index, own in zip(indices, drawn, strict=True):
                    assert found.setdefault((micro.epoch, index), own) == own
        return found

    one = draws(ALONE, SAMPLER)
    assert len(set(one.values())) == 2 * 23
    assert len(set(chain.from_iterable(one.values()))) == 3 * 2 * 23
    assert one == draws(ALONE, GlobalBatchSampler(length=23, global_batch_size=23, seed=3))
    assert draws(LAYOUTS["apart"], SAMPLER).items() <= one.items()


@pytest.mark.parametrize("seed_samples", [True, False])
def test_the_process_draws_what_it_would_draw_without_reading(seed_samples):
    def drawn():
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    kept = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(kept[0])
    numpy.random.set_state(kept[1])
    torch.set_rng_state(kept[2])
    list(make(ALONE, seed_samples=seed_samples))
    assert (drawn() == expected) == seed_samples


def test_a_sample_that_several_modules_need_is_read_once():
    dataset = Numbers(23)
    list(make(ALONE, dataset=dataset))
    assert dataset.reads == 23


def test_modules_have_datasets_and_collations_of_their_own():
    sampler = GlobalBatchSampler(length=4, global_batch_size=4, shuffle=False)
    dataset = {"vision": ["a", "b", "c", "d"], "language": [1, 2, 3, 4]}
    ((micro,),) = make(ALONE, dataset=dataset, sampler=sampler, collate_fn={"vision": "".join, "language": sum})
    assert (micro["vision"], micro["language"]) == ("abcd", 10)


def test_a_rank_opens_only_the_datasets_that_it_needs():
    apart, sampler = LAYOUTS["pipelined"], GlobalBatchSampler(length=4, global_batch_size=4)
    ((micro,),) = make(apart, 0, {"vision": [0, 1, 2, 3]}, sampler, collate_fn=None)
    assert set(micro.data) == {"vision"}
    with pytest.raises(DataError, match="dataset has none for 'language', which this rank reads samples for; it has vision"):
        make(apart, 1, {"vision": [0, 1, 2, 3]}, sampler)


def test_a_stage_that_reads_nothing_knows_the_sizes():
    deep = Topology.from_modules({"vision": {}, "language": {"pp": 3}})
    (micro, _), *_ = make(deep, 2, {})
    assert (len(micro), micro.samples_in_step, micro.data) == (3, 6, {})
    with pytest.raises(DataError, match=r"this rank reads no samples of 'language', only of: no module\. .*needs= of the data"):
        micro["language"]


def test_a_lane_without_samples_gets_empty_tensors_and_lists():
    sampler = GlobalBatchSampler(length=1, global_batch_size=1)
    ((micro,),) = make(LAYOUTS["apart"], 0, sampler=sampler, collate_fn=None)
    assert micro["vision"]["index"].shape == (0,)
    assert (micro["vision"]["draws"].shape, micro["vision"]["draws"].dtype) == ((0, 3), torch.float64)
    assert micro["vision"]["name"] == []
    ((own,),) = make(LAYOUTS["apart"], 0, [(torch.ones(2), ("x", 3))], sampler, collate_fn=None)
    pixels, (text, number) = own["vision"]
    assert (pixels.shape, text, number.shape) == ((0, 2), [], (0,))


def test_lanes_may_be_assigned_by_cost():
    assign = {"vision": balanced_lanes}
    micros = [next(iter(make(LAYOUTS["apart"], rank, assign_lanes=assign)))[0] for rank in range(4)]
    lanes = balanced_lanes(micros[0].indices, 2)
    assert [micro.lanes for micro in micros] == [{"vision": lanes}] * 4
    assert micros[1]["vision"][0] == [index for index, lane in zip(micros[1].indices, lanes, strict=True) if lane == 1]
    assert micros[2]["language"][0] == list(micros[2].indices[:1])


def test_len_is_the_number_of_steps_to_the_end_of_the_epoch():
    loader = make(ALONE)
    assert (len(loader), loader.epoch) == (4, 0)
    for _ in islice(loader, 3):
        pass
    assert (len(loader), len(list(loader))) == (1, 1)
    assert (len(loader), loader.epoch) == (4, 1)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_torch_distributed_checkpoint_saves_the_position(tmp_path):
    one, other = make(ALONE), make(ALONE, collate_fn=len)
    list(islice(one, 3))
    checkpoint.save({"data": one}, checkpoint_id=tmp_path)
    checkpoint.load({"data": other}, checkpoint_id=tmp_path)
    assert other.state_dict() == one.state_dict()
    assert [len(micro) for micro in next(iter(other))] == [2, 3]


def test_an_iterator_whose_position_is_no_longer_its_own_is_refused():
    loader = make(ALONE)
    state = copy.deepcopy(loader.state_dict())
    old = iter(loader)
    next(old)
    loader.load_state_dict(state)
    with pytest.raises(DataError, match="has a newer iterator or has loaded a state; iterate over it anew"):
        next(old)
    assert next(iter(loader))[0].step == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"dataset": Numbers(22)}, "of 'vision' has 22 samples, but the sampler has length=23", id="length"),
        pytest.param({"dataset": iter([1])}, "Iterable datasets are not read by role; use a map-style", id="iterable"),
        pytest.param({"batch_size": 3}, "no option 'batch_size' of a data loader over roles; there are num_w", id="option"),
        pytest.param({"check_every": -1}, "check_every=-1; use a number of steps", id="check"),
        pytest.param({"collate_fn": {"language": sum}}, "collate_fn has none for 'vision'", id="collate_fn"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        make(ALONE, **settings)
