"""Megatron-Core's own grids, process groups and layers over a context's groups."""

import sys
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import ContextError, GroupOptions, Topology
from mimo_role.megatron import adapters
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

WORLD = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2, "pp": 3, "ep": 2}})
MEGATRON = dict.fromkeys(WORLD.grids, GroupOptions(families="megatron"))
LEFT_OUT = {"hcp", "inter_dist_opt"}
"""Hierarchical context parallelism, and several instances of the distributed optimizer: Megatron's topology sets neither."""


def members(group):
    return None if group is None else dist.get_process_group_ranks(group)


def grids_and_collections():
    import warnings

    warnings.filterwarnings("ignore")
    context = mimo_role.init(WORLD, backend="gloo", groups=MEGATRON)
    original, made = dist.new_group, []
    dist.new_group = lambda *args, **rest: (made.append(args), original(*args, **rest))[1]
    grids = context.megatron_grid_map()
    module = next(iter(context.role.modules))
    collection = context.megatron_process_groups(module)
    known = {field.name for field in fields(collection)}
    found = {
        "kind": {name: type(grid).__module__ for name, grid in grids.items()},
        "mine": grids[module].get_pg(["tp", "pp"]) is context.group(module, "tp", "pp"),
        "others": [grids[name].get_pg("dp") for name in grids if name != module],
        "fields": {
            field.name: members(getattr(collection, field.name))
            for field in fields(collection)
            if hasattr(collection, field.name)
        },
        "known": known,
        "made": len(made),
    }
    dist.new_group = original
    dist.barrier()
    return found


@pytest.mark.ranks
def test_megatrons_grids_and_collections_have_our_groups():
    found = run_ranks(grids_and_collections, WORLD.world_size, timeout_s=110)
    grid, experts = WORLD.grids["language"], WORLD.expert_grids["language"]
    for rank, answers in enumerate(found):
        assert set(answers["kind"].values()) == {"megatron.core.hyper_comm_grid"}
        assert answers["mine"]
        assert answers["others"] == [None]
        assert answers["made"] == 0
        assert answers["known"] - set(answers["fields"]) == LEFT_OUT & answers["known"]
        if rank < 2:
            assert answers["fields"]["expt_dp"] == [0, 1]
            assert answers["fields"]["tp_ep_pp"] == [rank]
            assert answers["fields"]["embd"] is answers["fields"]["pos_embd"] is None
            continue
        coords = grid.coords(rank)
        expected = {name: list((grid if set(axes) <= set(grid.dim_names) else experts).row_of(rank, axes))
                    for name, axes in adapters.FIELDS.items() if name in answers["known"]}  # fmt: skip
        stages = grid.row_of(rank, "pp")
        expected["embd"] = [stages[0], stages[-1]] if coords["pp"] in (0, 2) else None
        expected["pos_embd"] = [rank] if coords["pp"] == 0 else None
        assert answers["fields"] == expected


def test_without_megatron_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron.core.hyper_comm_grid", None)
    monkeypatch.setitem(sys.modules, "megatron.core.process_groups_config", None)
    for call in (
        lambda: adapters.grid_map(WORLD, {}, 0, None),
        lambda: adapters.process_groups(WORLD, "vision", 0, None, None),
    ):
        with pytest.raises(ContextError, match=r"install Megatron-Core with pip install 'mimo-launch\[megatron\]'"):
            call()


class GridWithViews:
    """A Megatron-Core newer than the newest release, whose main branch has groups by view (August 2026)."""

    def __init__(self, *base):
        self.base = base
        self.views = {}
        self._pgs = {}

    def register_view(self, name, shape, dim_names, shared_dims):
        self.views[name] = (shape, dim_names, shared_dims)


def test_experts_are_a_view_if_megatron_has_views(monkeypatch):
    newer = SimpleNamespace(HyperCommGrid=GridWithViews)
    monkeypatch.setitem(sys.modules, "megatron.core.hyper_comm_grid", newer)
    grids = adapters.grid_map(WORLD, {}, 5, lambda module, *axes: (module, axes))
    language = grids["language"]
    assert language.views == {"expert": ([1, 2, 2, 3], ["expt_tp", "ep", "expt_dp", "pp"], ["pp"])}
    assert language._pgs["pp-tp"] == ("language", ("tp", "pp"))
    assert language._pgs["expert", ("pp", "ep", "expt_tp")] == ("language", ("expt_tp", "ep", "pp"))
    assert set(grids["vision"]._pgs.values()) == {None}
    # Megatron's optimizer needs the expert view of every module.
    assert grids["vision"].views == {"expert": ([1, 1, 2, 1], ["expt_tp", "ep", "expt_dp", "pp"], ["pp"])}


def test_a_grid_has_the_families_of_the_options(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron.core.hyper_comm_grid", SimpleNamespace(HyperCommGrid=GridWithViews))
    options = {"language": GroupOptions(families=(("dp", "pp"),))}
    for rank in (0, 5):
        found = adapters.grid_map(WORLD, options, rank, lambda *found: found)["language"]._pgs
        assert {key for key in found if isinstance(key, str)} == {"tp", "cp", "dp", "pp", "pp-dp"}


def test_every_field_is_set_if_all_axes_are_longer_than_one(monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 3}})
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=world.world_size)
    try:
        context = mimo_role.init(world, groups=dict.fromkeys(world.grids, GroupOptions(families="megatron")))
        found = context.megatron_process_groups("language")
        assert [members(found.ep), members(found.pos_embd), members(found.embd)] == [[2], [2], [2, 18]]
        assert members(found.expt_dp) == list(range(2, 10))
    finally:
        mimo_role.shutdown()
        dist.destroy_process_group()


def mlp_of_megatron():
    """Megatron's tensor-parallel MLP over our tp group: its loss, and the loss of the same weights whole."""
    import warnings

    warnings.filterwarnings("ignore")
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import TransformerConfig

    context = mimo_role.init(WORLD, backend="gloo", groups=MEGATRON)
    loss = whole = None
    if context.role.has_language_module:
        tp = context.megatron_process_groups("language").tp
        config = TransformerConfig(
            num_layers=1, hidden_size=4, num_attention_heads=2, use_cpu_initialization=True, tensor_model_parallel_size=2
        )
        init = torch.nn.init.xavier_uniform_
        settings = {"config": config, "init_method": init, "bias": False, "tp_group": tp}
        up = ColumnParallelLinear(4, 8, gather_output=False, **settings)
        down = RowParallelLinear(8, 4, input_is_parallel=True, skip_bias_add=False, **settings)
        inputs = torch.arange(12.0).reshape(3, 4)
        loss = float(down(up(inputs)[0])[0].square().sum())
        wide = [torch.empty(4, 4) for _ in range(2)]
        dist.all_gather(wide, up.weight.data, group=tp)
        back = [torch.empty(4, 4) for _ in range(2)]
        dist.all_gather(back, down.weight.data, group=tp)
        whole = float((inputs @ torch.cat(wide).T @ torch.cat(back, dim=1).T).square().sum())
    dist.barrier()
    return loss, whole


@pytest.mark.ranks
def test_megatrons_layers_run_on_our_groups():
    for loss, whole in run_ranks(mlp_of_megatron, WORLD.world_size, timeout_s=110)[2:]:
        assert loss == pytest.approx(whole, rel=1e-5)
