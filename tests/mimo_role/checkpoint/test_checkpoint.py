"""Saving and loading on real ranks: what is restored, what is refused, and what happens in the background."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import mimo_role
from mimo_role import CheckpointError, MimoError, Topology, checkpoint
from tests.mimo_role.fresh_worlds import Job, run_jobs

pytestmark = [pytest.mark.ranks, pytest.mark.timeout(150)]

SPLIT = Topology.from_modules({"vision": {}, "language": {"tp": 2}})
STAGES = Topology.from_modules({"vision": {}, "language": {"pp": 2}})
ALONE = Topology.from_modules({"vision": {}, "language": {}}, layout="colocated")


class Part(nn.Module):
    """Parameters under their names, each filled with a number."""

    def __init__(self, **values):
        super().__init__()
        for name, value in values.items():
            filled = value if isinstance(value, torch.Tensor) else torch.full((4, 3), float(value))
            self.register_parameter(name, nn.Parameter(filled))


def attempt(call, *args, **settings):
    """The text of the error that a call raises."""
    try:
        call(mimo_role.current(), *args, **settings)
    except MimoError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def modules_of(**values):
    """`vision.a` and `language.a`, or other values of these names."""
    ctx = mimo_role.current()
    return {name: Part(**(values or {"a": 1.0})) for name in ctx.role.modules}


def refused_saves(found, folder):
    ctx = mimo_role.current()
    is_last = ctx.rank == 2
    marked = modules_of()
    if ctx.role.has_language_module:
        marked["language"].a.tensor_model_parallel = True
    for modules, settings in (
        (modules_of(a=2.0 if is_last else 1.0), {}),
        (modules_of(a=torch.zeros(5 if is_last else 4)), {}),
        (marked, {}),
        (modules_of() if not is_last else {"audio": Part(a=1.0)}, {}),
        (modules_of(), {"extra": {"lr": 0.1 if ctx.rank else 0.0}}),
        (modules_of(), {"extra": (lambda: None) if is_last else None}),
        (modules_of(), {"keep": 0}),
        (modules_of(), {"optimizer": torch.optim.SGD(Part(a=1.0).parameters())}),
        (modules_of(), {"per_rank": 3, "extra": {"text": "".join(["a", "b"]), "ab": "ab"}, "check_copies": False}),
    ):
        found.append(attempt(checkpoint.save, folder, 1, modules, **settings))
    (folder / "file").write_text("")
    found.append(attempt(checkpoint.save, folder / "file", 1, modules_of()))
    checkpoint.save(ctx, folder / "file", 1, modules_of(), asynchronous=True)
    found.append(attempt(checkpoint.wait))


REFUSED_SAVES = (
    "parameters of one name differ: language.a on rank 1 (language.tp0) and rank 2 (language.tp1). A checkpoint has one",
    "language.a is ((4,), 'torch.float32') on rank 1 (language.tp0) and ((5,), 'torch.float32') on rank 2 (language.tp1)",
    "language.a is marked tensor_model_parallel, but is a plain tensor",
    "'audio' is no module of this rank, which runs language",
    "extra has to be the same on all ranks, and is not on this one and rank 0: extra['lr']: 0.1 and 0.0; use per_rank",
    "extra cannot be pickled",
    "keep=0; use 1 or more",
    "an optimizer has a parameter of shape (4, 3) that is in none of the modules",
    "no error",
    "/file/step_000001: not saved: rank 0 (vision): NotADirectoryError",
    "/file/step_000001: not saved: rank 0 (vision): NotADirectoryError",
)


def refused_loads(found, folder):
    ctx = mimo_role.current()
    checkpoint.save(ctx, folder / "a", 4, modules_of())
    found.append(attempt(checkpoint.load, folder / "a", modules_of(b=1.0)))
    found.append(attempt(checkpoint.load, folder / "a", modules_of(a=torch.zeros(5))))
    found.append(attempt(checkpoint.load, folder / "a", modules_of(a=torch.zeros(4, 3, dtype=torch.float64))))
    found.append(attempt(checkpoint.load, folder / "a", modules_of(), step=5))
    modules = modules_of()
    found.append(attempt(checkpoint.load, folder / "a", modules, torch.optim.Adam(nn.ModuleDict(modules).parameters())))
    assert checkpoint.load(ctx, folder / "none", modules_of()) is None
    loose = modules_of(a=torch.zeros(4, 3, dtype=torch.float64), b=7.0)
    assert checkpoint.load(ctx, folder / "a", loose, strict=False).step == 4
    assert all((part.a == 1).all() and (part.b == 7).all() for part in loose.values())


REFUSED_LOADS = (
    "language.b is not in the checkpoint",
    "language.a is a tensor of (4, 3) in the checkpoint and a tensor of (5,) here",
    "language.a is of torch.float32 in the checkpoint and of torch.float64 here",
    "no complete checkpoint of step 5; there are: 4",
    "optimizer/language.a/exp_avg is not in the checkpoint",
)


def draw_after_saving(found, folder):
    ctx = mimo_role.current()
    streams = ctx.seed_everything(5)
    torch.rand(3)
    checkpoint.save(ctx, folder, 1, modules_of(), extra={"at": 7}, per_rank=streams.rng_state())
    expected = torch.rand(4)
    restored = ctx.seed_everything(6)
    loaded = checkpoint.load(ctx, folder, modules_of())
    restored.load_rng_state(loaded.per_rank)
    found.append((loaded.extra, torch.equal(torch.rand(4), expected)))


def load_in_another_layout(found, folder):
    loaded = checkpoint.load(mimo_role.current(), folder, modules_of())
    found.append((loaded.extra, loaded.per_rank))


def save_in_the_background(found, folder):
    """The last save is waited for by `shutdown()`."""
    ctx = mimo_role.current()
    modules = modules_of()
    if ctx.role.has_language_module:
        whole = torch.full((4, 3), 1.0)
        modules["language"].a = nn.Parameter(
            distribute_tensor(whole, ctx.mesh("language")["tp"], [Shard(0)], src_data_rank=None)
        )
    for step in (1, 2, 3):
        checkpoint.save(ctx, folder, step, modules, keep=2, asynchronous=True)
        with torch.no_grad():
            next(iter(modules.values())).a.add_(1.0)
    found.append(checkpoint.latest(folder))


def load_alone(found, folder):
    modules = modules_of(a=0.0)
    for step in (2, None):
        loaded = checkpoint.load(mimo_role.current(), folder, modules, step=step)
        found.append((loaded.step, *(set(part.a.flatten().tolist()) for part in modules.values())))
    found.append(sorted(path.name for path in folder.iterdir()))


def train_tied_and_partly_unused(found, folder):
    """The optimizer has not begun at step 0; `unused` never gets a gradient; `b` is `a`, on a stage of its own or not."""
    ctx = mimo_role.current()
    names = {0: "ab", 1: "a", 2: "b"}
    modules = modules_of()
    if ctx.role.has_language_module:
        tied = nn.Parameter(torch.ones(2))
        modules["language"] = Part(unused=1.0)
        for name in names[ctx.rank]:
            modules["language"].register_parameter(name, tied)
    optimizer = torch.optim.AdamW(nn.ModuleDict(modules).parameters(), lr=0.1)
    if ctx.topology == ALONE:
        loaded = checkpoint.load(ctx, folder, modules, optimizer)
        state = optimizer.state[modules["language"].a]
        found.append((loaded.step, optimizer.param_groups[0]["lr"], state["step"].item(), len(optimizer.state)))
        found.append(modules["language"].a.tolist())
        checkpoint.load(ctx, folder, modules, optimizer, step=0)
        found.append((len(optimizer.state), modules["language"].a.tolist()))
        return
    checkpoint.save(ctx, folder, 0, modules, optimizer)
    assert not optimizer.state
    for parameter in nn.ModuleDict(modules).parameters():
        parameter.grad = torch.ones_like(parameter)
    if ctx.role.has_language_module:
        modules["language"].unused.grad = None
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.05
    checkpoint.save(ctx, folder, 1, modules, optimizer)
    found.append(nn.ModuleDict(modules)["language"].state_dict() if "language" in modules else None)


class Nested(nn.Module):
    """A part within another module, wrapped or not."""

    def __init__(self, value, wrap):
        super().__init__()
        self.inner = wrap(Part(a=value))


def save_wrapped_and_load_plain(found, folder):
    ctx = mimo_role.current()
    wrapped = {"vision": DistributedDataParallel(Nested(1.0, lambda part: part)), "language": Nested(2.0, torch.compile)}
    plain = {name: Nested(0.0, lambda part: part) for name in ("vision", "language")}
    both = [wrapped, plain]
    optimizers = [torch.optim.Adam(nn.ModuleDict(modules).parameters()) for modules in both]
    for parameter in nn.ModuleDict(wrapped).parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers[0].step()
    for source, target, step in ((0, 1, 1), (1, 0, 2)):
        checkpoint.save(ctx, folder, step, both[source], optimizers[source])
        checkpoint.load(ctx, folder, both[target], optimizers[target])
        weights = [[parameter.tolist() for parameter in nn.ModuleDict(modules).parameters()] for modules in both]
        states = [[value["exp_avg"].tolist() for value in optimizer.state.values()] for optimizer in optimizers]
        found.append((weights[0] == weights[1], states[0] == states[1], len(states[0])))
    found.append(sorted(FileSystemReader(folder / "step_000001").read_metadata().state_dict_metadata)[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def outcomes(folder):
    jobs = {
        "refused saves": Job(refused_saves, SPLIT, (folder / "refused",)),
        "refused loads": Job(refused_loads, SPLIT, (folder / "loads",)),
        "drawn": Job(draw_after_saving, SPLIT, (folder / "drawn",)),
        "another layout": Job(load_in_another_layout, ALONE, (folder / "drawn",)),
        "background": Job(save_in_the_background, SPLIT, (folder / "background",)),
        "after background": Job(load_alone, ALONE, (folder / "background",)),
        "wrapped": Job(save_wrapped_and_load_plain, ALONE, (folder / "wrapped",)),
        "stages": Job(train_tied_and_partly_unused, STAGES, (folder / "tied",)),
        "tied": Job(train_tied_and_partly_unused, ALONE, (folder / "tied",)),
    }
    (folder / "refused").mkdir()
    return dict(zip(jobs, run_jobs(*jobs.values(), timeout_s=120), strict=True))


def found_by(outcomes, job):
    assert not [own.errors for own in outcomes[job] if own.errors]
    return [own.found for own in outcomes[job]]


@pytest.mark.parametrize("at", range(len(REFUSED_SAVES)))
def test_a_save_that_would_lose_something_is_refused_on_all_ranks(at, outcomes):
    for found in found_by(outcomes, "refused saves"):
        assert REFUSED_SAVES[at] in found[at]


@pytest.mark.parametrize("at", range(len(REFUSED_LOADS)))
def test_a_load_that_does_not_fit_is_refused_on_all_ranks(at, outcomes):
    for found in found_by(outcomes, "refused loads"):
        assert REFUSED_LOADS[at] in found[at]


def test_random_numbers_continue_where_the_checkpoint_was_saved(outcomes):
    assert found_by(outcomes, "drawn") == [[({"at": 7}, True)]] * 3


def test_values_per_rank_are_left_out_in_another_layout(outcomes):
    assert found_by(outcomes, "another layout") == [[({"at": 7}, None)]]


def test_saves_in_the_background_have_the_values_at_the_call(outcomes):
    assert {found[0] for found in found_by(outcomes, "background")} <= {2, 3}
    assert found_by(outcomes, "after background") == [
        [(2, {2.0}, {2.0}), (3, {3.0}, {3.0}), ["step_000002", "step_000003"]],
    ]


def test_wrappers_do_not_change_names(outcomes):
    assert found_by(outcomes, "wrapped") == [[(True, True, 2), (True, True, 2), ["language.inner.a", "mimo/manifest"]]]


def test_a_weight_of_two_names_and_an_optimizer_that_has_not_begun_are_saved_as_they_are(outcomes):
    saved = found_by(outcomes, "stages")
    ((loaded, values, before),) = found_by(outcomes, "tied")
    assert loaded == (1, 0.05, 1.0, 2)
    assert values == saved[1][0]["a"].tolist() == saved[2][0]["b"].tolist() != [1.0, 1.0]
    assert before == (0, [1.0, 1.0])


@pytest.fixture
def saved(outcomes, folder):
    """Checkpoints of steps 2 and 3, with `language.a` from shards."""
    pytest.importorskip("safetensors")
    found_by(outcomes, "background")
    return folder / "background"


def test_the_whole_weights_are_exported_without_a_job(saved, tmp_path):
    from safetensors.torch import load_file

    (file,) = checkpoint.export_safetensors(saved, tmp_path / "all")
    (old,) = checkpoint.export_safetensors(saved, tmp_path / "old", step=2, modules=["language"])

    assert file.name == old.name == "model.safetensors"
    found = load_file(file)
    assert sorted(found) == ["language.a", "vision.a"]
    assert all(torch.equal(value, torch.full((4, 3), 3.0)) for value in found.values())
    assert {name: value.mean().item() for name, value in load_file(old).items()} == {"language.a": 2.0}


def test_an_export_above_the_size_of_a_file_is_several_with_an_index(saved, tmp_path):
    files = checkpoint.export_safetensors(saved, tmp_path, max_file_gib=50 / 2**30)

    assert [file.name for file in files] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index == {
        "metadata": {"total_size": 96},
        "weight_map": {"language.a": files[0].name, "vision.a": files[1].name},
    }


def test_an_export_of_what_is_not_there_is_refused(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"step_000003 has no module 'audio'; it has language, vision"):
        checkpoint.export_safetensors(saved, tmp_path, modules=["audio"])
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoint.export_safetensors(tmp_path, tmp_path)


def test_an_export_without_safetensors_names_the_extra(saved, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match=r"pip install mimo-launch\[checkpoint\]"):
        checkpoint.export_safetensors(saved, tmp_path)
