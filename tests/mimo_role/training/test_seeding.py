"""Random numbers that are equal or different over ranks, and continue from a checkpoint."""

import random

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import checkpoint

import mimo_role
from mimo_role import AxisError, ContextError, RandomStreams, Topology, megatron_seeds
from mimo_role.testing import run_ranks
from mimo_role.training.seeding import seed_of, stream_of
from tests.mimo_role.worlds import AXES, topologies

APART = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})
SHARED = Topology.from_modules({"vision": {"tp": 2}, "language": {"dp": 2}}, layout="colocated")
SHARED_ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")
CPU = torch.device("cpu")


@given(st.data(), topologies(experts=True), st.sets(st.sampled_from(AXES)))
def test_ranks_with_equal_coordinates_along_the_axes_share_a_stream(data, topology, axes):
    module = data.draw(st.sampled_from(list(topology.grids)))
    grid = topology.grids[module]
    one, other = (data.draw(st.sampled_from(grid.ranks)) for _ in range(2))
    same = all(grid.coords(one)[axis] == grid.coords(other)[axis] for axis in axes)
    assert (stream_of(topology, one, module, axes) == stream_of(topology, other, module, axes)) == same


@given(topologies(), st.integers(), st.sets(st.sampled_from(AXES)))
def test_different_streams_have_different_seeds(topology, seed, axes):
    names = {
        stream_of(topology, rank, module, axes) for rank in range(topology.world_size) for module in topology.modules_of(rank)
    }
    seeds = {seed_of(seed, name, purpose) for name in names for purpose in ("torch", "numpy", "python", "generator")}
    assert len(seeds) == 4 * len(names)
    assert all(0 <= one < 2**63 for one in seeds)


@given(st.integers(0, 7), st.integers(8, 64), st.sampled_from([1, 2, 4]), st.integers(1, 3))
def test_the_stream_of_a_lane_does_not_depend_on_sizes(lane, dp, tp, pp):
    topology = Topology.from_modules({"vision": {}, "language": {"tp": tp, "dp": dp, "pp": pp}})
    rank = topology.grids["language"].rank_at({"dp": lane, "tp": tp - 1})
    assert stream_of(topology, rank, "language") == ("language" if lane == 0 else f"language.dp{lane}")


def test_seeds_do_not_change_between_releases():
    """A change of these changes the random numbers of every job that is repeated."""
    assert seed_of(1234, "language.dp1", "torch") == 5336408883804081970
    assert seed_of(-1, "vision", "numpy") == 2723249203236843526


@pytest.mark.parametrize(
    ("rank", "module", "axes", "message"),
    [
        (0, "audio", (), r"no module 'audio'; there are vision, language"),
        (0, "language", (), r"rank 0 does not run 'language'; it runs vision"),
        (2, "language", ("dp", "tpp"), r"different_over: no axis 'tpp'; module 'language' has tp, cp, gtp_remat, dp, pp, "),
    ],
)
def test_unknown_modules_and_axes_are_refused(rank, module, axes, message):
    with pytest.raises(AxisError, match=message):
        stream_of(APART, rank, module, axes)


def test_expert_axes_may_be_named():
    experts = Topology.from_modules({"vision": {}, "language": {"tp": 2, "dp": 2, "ep": 4}})
    assert [stream_of(experts, rank, "language", ("ep",)) for rank in (1, 4)] == ["language", "language.ep3"]
    assert stream_of(APART, 2, "language", ("ep",)) == "language"


@given(topologies(experts=True), st.integers(1, 2**31))
def test_seeds_for_megatrons_tracker_differ_by_name_and_follow_its_axes(topology, seed):
    for rank in topology.grids["language"].ranks:
        seeds = megatron_seeds(seed, topology, rank, "language")
        coords = topology.grids["language"].coords(rank)
        assert seeds["data-parallel-rng"] == seed + 100 * coords["pp"]
        assert seeds["model-parallel-rng"] - seeds["data-parallel-rng"] == 2718 + coords["tp"]
        assert len(set(seeds.values())) == len(seeds)
        assert ("gtp-remat-rng" in seeds) == ("gtp_remat" in coords and topology.grids["language"].axis_size("gtp_remat") > 1)


def test_ranks_of_generalized_tensor_parallelism_have_seeds_of_their_own():
    sizes = {"tp": 2, "gtp_remat": 2, "dp": 2, "ep": 2, "expt_gtp_remat": 2}
    topology = Topology.from_modules({"language": sizes}, layout="colocated")
    found = [megatron_seeds(1, topology, rank, "language") for rank in range(8)]
    assert [seeds["gtp-remat-rng"] for seeds in found[:4]] == [1 + 2718 + tp + 65536 * gtp for gtp in (1, 2) for tp in (0, 1)]
    expert = [1 + 1024 + 100 * ep + 32768 + 65536 * gtp for gtp in (1, 2) for ep in (0, 1)]
    assert [seeds["egtp-remat-rng"] for seeds in found[:4]] == expert


@pytest.mark.peer
@pytest.mark.filterwarnings("ignore")
def test_megatron_core_seeds_its_tracker_equally(monkeypatch):
    from megatron.core.tensor_parallel import random as theirs

    added = {}
    monkeypatch.setattr(theirs.CudaRNGStatesTracker, "add", lambda _, name, seed: added.update({name: seed}))
    topology = Topology.from_modules({"vision": {}, "language": {"tp": 2, "pp": 2, "ep": 2, "dp": 2, "expt_tp": 2}})
    for rank in topology.grids["language"].ranks:
        coords = topology.grids["language"].coords(rank) | topology.expert_grids["language"].coords(rank)
        places = {"tp_rank": coords["tp"], "ep_rank": coords["ep"], "etp_rank": coords["expt_tp"]}
        theirs.model_parallel_cuda_manual_seed(1234 + 100 * coords["pp"], force_reset_rng=True, **places)
        assert added == megatron_seeds(1234, topology, rank, "language")


@pytest.fixture(autouse=True)
def _as_before():
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    yield
    random.setstate(before[0])
    numpy.random.set_state(before[1])
    torch.set_rng_state(before[2])


def drawn():
    return random.random(), numpy.random.rand(), torch.rand(()).item(), random.gauss(0.0, 1.0), numpy.random.normal()


def test_one_seed_gives_the_same_numbers_again():
    RandomStreams(7, SHARED, 0, CPU)
    first = drawn()
    RandomStreams(7, SHARED, 0, CPU)
    assert drawn() == first
    RandomStreams(8, SHARED, 0, CPU)
    assert not set(drawn()) & set(first)


def test_modules_on_one_rank_have_separate_streams():
    streams = RandomStreams(7, SHARED, 1, CPU)
    with streams.fork("vision"):
        vision = torch.rand(4)
    language = torch.rand(4)
    streams = RandomStreams(7, SHARED, 1, CPU)
    assert torch.equal(torch.rand(2), language[:2])
    with streams.fork("vision"):
        assert torch.equal(torch.rand(2), vision[:2])
        with streams.fork("language"):
            assert torch.equal(torch.rand(2), language[2:])
        assert torch.equal(torch.rand(1), vision[2:3])
    with pytest.raises(ZeroDivisionError), streams.fork("vision"):
        _ = 1 / 0
    with streams.fork("vision"):
        assert torch.equal(torch.rand(1), vision[3:])


def test_a_modules_generator_does_not_change_other_streams():
    expected = RandomStreams(7, SHARED, 0, CPU), torch.rand(3)
    streams = RandomStreams(7, SHARED, 0, CPU)
    numbers = [torch.rand(3, generator=streams.generator(module)) for module in ("vision", "language")]
    assert torch.equal(torch.rand(3), expected[1])
    assert not torch.equal(*numbers)


def test_recomputation_in_the_backward_pass_draws_a_modules_mask_again():
    streams = RandomStreams(7, SHARED, 0, CPU)
    x = torch.ones(1000, requires_grad=True)
    with streams.fork("vision"):
        y = torch.utils.checkpoint.checkpoint(lambda x: torch.nn.functional.dropout(x) * x, x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad, 2 * y.detach())  # the derivative of mask * x * x at 1


def test_a_module_of_another_rank_is_refused():
    streams = RandomStreams(7, APART, 0, CPU)
    with pytest.raises(AxisError, match="rank 0 does not run 'language'; it runs vision"):
        streams.generator("language")
    with pytest.raises(AxisError, match="rank 0 does not run 'language'"), streams.fork("language"):
        pass


def all_drawn(streams):
    found = [*drawn(), *(torch.rand((), generator=streams.generator(module)).item() for module in streams.names)]
    for module in streams.names:
        with streams.fork(module):
            found.append(torch.rand(()).item())
    return found


@pytest.mark.parametrize("in_a_block", [False, True], ids=["", "in a module's block"])
def test_saved_streams_continue_exactly(tmp_path, in_a_block):
    streams = RandomStreams(7, SHARED, 0, CPU)
    all_drawn(streams)
    if in_a_block:
        with streams.fork("vision"):
            torch.rand(2)
            torch.save(streams.rng_state(), tmp_path / "state")
    else:
        torch.save(streams.rng_state(), tmp_path / "state")
    expected = all_drawn(streams)
    other = RandomStreams(99, SHARED, 0, CPU)
    all_drawn(other)
    other.load_rng_state(torch.load(tmp_path / "state", weights_only=True))
    assert all_drawn(other) == expected
    assert other.seed == 7


def test_the_state_of_another_place_is_refused():
    state = RandomStreams(7, APART, 0, CPU).rng_state()
    message = r"saved by a rank that drew from vision on cpu; this one draws from vision.dp1 on cpu\. In another layout, call "
    with pytest.raises(ContextError, match=message):
        RandomStreams(7, APART, 1, CPU).load_rng_state(state)


def draw_on_all_ranks():
    streams = mimo_role.current().seed_everything(1234)
    found = {"process": drawn(), "dropout": torch.nn.functional.dropout(torch.ones(40)).tolist()}
    for module in streams.names:
        with streams.fork(module):
            found[module] = torch.rand(()).item()
        found[module, "generator"] = torch.rand((), generator=streams.generator(module)).item()
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("topology", [APART, SHARED], ids=["non-colocated", "colocated"])
def test_ranks_draw_equal_numbers_over_tp_and_different_ones_over_dp_and_modules(topology):
    found = run_ranks(draw_on_all_ranks, topology)
    first_of = {}
    for rank, numbers in enumerate(found):
        for module in topology.modules_of(rank):
            stream = stream_of(topology, rank, module)
            expected = first_of.setdefault(stream, numbers)
            follows_process = module == topology.modules_of(rank)[-1]
            keys = [module, (module, "generator"), *(["process", "dropout"] if follows_process else [])]
            assert [numbers[key] for key in keys] == [expected[key] for key in keys]
    values = [numbers[stream.partition(".")[0]] for stream, numbers in first_of.items()]
    assert len(set(values)) == len(first_of)


def save_and_go_on(folder):
    streams = mimo_role.current().seed_everything(1234)
    random.seed(mimo_role.current().rank)  # a rank may draw more than its neighbours: each saves its own
    all_drawn(streams)
    checkpoint.save({"random": streams}, checkpoint_id=folder)
    return all_drawn(streams)


def load_and_go_on(folder):
    streams = mimo_role.current().seed_everything(99)
    checkpoint.load({"random": streams}, checkpoint_id=folder)
    return all_drawn(streams)


@pytest.mark.ranks
@pytest.mark.parametrize("topology", [APART, SHARED], ids=["non-colocated", "colocated"])
def test_streams_continue_from_a_distributed_checkpoint(tmp_path, topology):
    expected = run_ranks(save_and_go_on, topology, str(tmp_path))
    assert run_ranks(load_and_go_on, topology, str(tmp_path)) == expected


def prepare_a_mesh(axes):
    context = mimo_role.current()
    streams = context.seed_everything(1234, different_over=axes)
    try:
        streams.prepare_dtensor(context.mesh(streams.module))
    except ContextError as error:
        return str(error)
    return torch.rand(()).item()


@pytest.mark.ranks
def test_dtensor_needs_equal_streams_over_a_mesh():
    refused = run_ranks(prepare_a_mesh, APART, ("dp", "pp"))
    assert all("has 2 streams on this one; call seed_everything with different_over=() or ('pp',)" in text for text in refused)
    vision, language = run_ranks(prepare_a_mesh, APART, ())[1:3]
    assert vision != language


def go_on_with_cuda(axes):
    context = mimo_role.init(SHARED_ALONE, backend="nccl", timeout_s=60)
    streams = context.seed_everything(7, different_over=axes)
    state = streams.rng_state()
    expected = [torch.rand(3, device=context.device) for _ in range(2)]
    streams.load_rng_state(state)
    streams.prepare_dtensor(context.mesh("language"))
    with streams.fork("vision"):
        other = torch.rand(3, device=context.device)
    found = [torch.rand(3, device=context.device) for _ in range(2)]
    mimo_role.shutdown()
    return [torch.equal(*pair) for pair in zip(found, expected, strict=True)], torch.equal(other, expected[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU (or this is its CPU build)")
def test_streams_of_a_gpu_continue_exactly():
    assert run_ranks(go_on_with_cuda, 1, ()) == [([True, True], False)]
