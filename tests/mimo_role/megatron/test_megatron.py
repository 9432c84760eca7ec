"""Megatron-Core's own grids, process groups and layers over a context's groups."""

import sys
from dataclasses import fields

import pytest
import torch
import torch.distributed as dist

import mimo_role
from mimo_role import AxisError, ContextError, GroupOptions, Topology
from mimo_role.megatron import adapters
from mimo_role.testing import run_ranks

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

SIZES = {"tp": 2, "gtp_remat": 2, "pp": 3, "ep": 2, "expt_gtp_remat": 2}
WORLD = Topology.from_modules({"vision": {"tp": 2, "dp": 2}, "language": SIZES})
LARGE_SIZES = {"tp": 8, "gtp_remat": 2, "dp": 72, "pp": 8, "ep": 16, "expt_gtp_remat": 2}
LARGE = Topology.from_modules({"vision": {"dp": 1024}, "language": LARGE_SIZES})
MEGATRON = dict.fromkeys(WORLD.grids, GroupOptions(families="megatron"))
LEFT_OUT = {"hcp", "inter_dist_opt"}
"""Hierarchical context parallelism, and several instances of the distributed optimizer: Megatron's topology sets neither."""

DENSE = {
    "tp": ["tp"],
    "cp": ["cp"],
    "pp": ["pp"],
    "dp": ["dp"],
    "gtp_remat": ["gtp_remat"],
    "dp_cp": ["dp", "cp"],
    "intra_dp_cp": ["dp", "cp"],
    "dp_cp_ag": ["dp", "cp"],
    "dp_cp_gtp_remat": ["dp", "cp", "gtp_remat"],
    "tp_cp": ["tp", "cp"],
    "tp_dp": ["tp", "gtp_remat", "dp"],
    "tp_dp_cp": ["tp", "gtp_remat", "dp", "cp"],
    "mp": ["tp", "gtp_remat", "pp"],
    "intra_dist_opt": ["tp", "cp", "gtp_remat", "dp", "pp"],
}
EXPERT = {
    "ep": ["ep"],
    "expt_tp": ["expt_tp"],
    "expt_gtp_remat": ["expt_gtp_remat"],
    "expt_dp": ["expt_dp"],
    "intra_expt_dp": ["expt_dp"],
    "expt_dp_ag": ["expt_dp"],
    "expt_dp_gtp_remat": ["expt_dp", "expt_gtp_remat"],
    "tp_ep": ["expt_tp", "ep"],
    "tp_ep_pp": ["expt_tp", "ep", "pp"],
    "tp_ep_pp_with_egtp_remat": ["expt_tp", "ep", "expt_gtp_remat", "pp"],
}


def members(group):
    return None if group is None else dist.get_process_group_ranks(group)


def megatrons_rows(topology, module):
    """The rows of every field, as Megatron-Core's own grids enumerate them: by field, a list for each group."""
    from megatron.core.hyper_comm_grid import HyperCommGrid

    grid = topology.grids[module]
    sizes = dict(zip(grid.dim_names, grid.shape, strict=True))
    stage = grid.size // sizes["pp"]
    experts = SIZES if topology is WORLD else LARGE_SIZES
    ep, gtp = (experts["ep"], experts["expt_gtp_remat"]) if module == "language" else (1, 1)
    dense = ["tp", "cp", "gtp_remat", "dp", "pp"]
    axes = {"expt_tp": 1, "ep": ep, "expt_gtp_remat": gtp, "expt_dp": stage // ep // gtp, "pp": sizes["pp"]}
    of_dense = HyperCommGrid([sizes.get(axis, 1) for axis in dense], dense, grid.rank_offset)
    of_experts = HyperCommGrid(list(axes.values()), list(axes), grid.rank_offset)
    rows = {name: of_dense.get_rank_enum(dims) for name, dims in DENSE.items()}
    return rows | {name: of_experts.get_rank_enum(dims) for name, dims in EXPERT.items()}


def expected_fields(topology, module, rank, known):
    rows = megatrons_rows(topology, module)
    found = {name: next(row for row in rows[name] if rank in row) for name in rows.keys() & known}
    stages, stage = found["pp"], found["pp"].index(rank)
    is_language, last = module == "language", len(stages) - 1
    found["embd"] = sorted({stages[0], stages[last]}) if is_language and stage in (0, last) else None
    found["pos_embd"] = [rank] if is_language and stage == 0 else None
    return found


def found_fields(collection):
    return {name: members(group) for name, group in vars(collection).items()}


def grids_and_collections():
    import warnings

    warnings.filterwarnings("ignore")
    context = mimo_role.init(WORLD, backend="gloo", groups=MEGATRON)
    original, made = dist.new_group, []
    dist.new_group = lambda *args, **rest: (made.append(args), original(*args, **rest))[1]
    grids = context.megatron_grid_map()
    module = next(iter(context.role.modules))
    collection = context.megatron_process_groups(module)
    found = {
        "kind": {name: type(grid).__module__ for name, grid in grids.items()},
        "mine": grids[module].get_pg(["tp", "pp"]) is context.group(module, "tp", "pp"),
        "others": [grids[name].get_pg("dp") for name in grids if name != module],
        "fields": found_fields(collection),
        "declared": {field.name for field in fields(collection)},
        "made": len(made),
        "apart": context.group(module, "dp_cp_ag") is not context.group(module, "dp", "cp"),
    }
    if hasattr(grids[module], "register_view"):
        whole = ["expt_tp", "ep", "expt_gtp_remat", "pp"] if module == "language" else ["expt_tp", "ep", "pp"]
        found["expert view"] = members(grids[module].get_pg(whole, view="expert"))
        several = context.megatron_multi_module_process_groups()
        found["modules"] = list(several.keys()), several.language_model_module_name
    dist.new_group = original
    dist.barrier()
    return found


@pytest.mark.ranks
def test_megatrons_grids_and_collections_have_our_groups(monkeypatch):
    assert WORLD.world_size == 16
    found = run_ranks(grids_and_collections, WORLD.world_size, timeout_s=110)
    monkeypatch.setenv("WORLD_SIZE", "16")  # Megatron's grids ask for it
    for rank, answers in enumerate(found):
        module = "vision" if rank < 4 else "language"
        assert set(answers["kind"].values()) == {"megatron.core.hyper_comm_grid"}
        assert answers["mine"]
        assert answers["others"] == [None]
        assert answers["made"] == 0
        assert answers["apart"] == (module == "vision")  # of one rank there is one group
        known = answers["declared"] | {"tp_dp"}
        expected = expected_fields(WORLD, module, rank, known)
        assert answers["fields"] == expected
        assert known - set(expected) == LEFT_OUT & known
        if "expert view" in answers:
            assert answers["expert view"] == expected["tp_ep_pp_with_egtp_remat"]
            assert answers["modules"] == ([module], "language" if module == "language" else None)


@pytest.mark.parametrize("rank", [500, 1024 + 7, 1024 + 1152 * 3 + 5, 10_239])
def test_ten_thousand_ranks_have_megatrons_groups(rank, monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "10240")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=LARGE.world_size)
    try:
        context = mimo_role.init(LARGE, groups=dict.fromkeys(LARGE.grids, GroupOptions(families="megatron")))
        (module,) = context.role.modules
        collection = context.megatron_process_groups(module)
        known = {field.name for field in fields(collection)} | {"tp_dp"}
        assert found_fields(collection) == expected_fields(LARGE, module, rank, known)
    finally:
        mimo_role.shutdown()
        dist.destroy_process_group()


def test_without_megatron_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "megatron.core.hyper_comm_grid", None)
    monkeypatch.setitem(sys.modules, "megatron.core.process_groups_config", None)
    for call in (
        lambda: adapters.grid_map(WORLD, {}, 0, None),
        lambda: adapters.process_groups(WORLD, "vision", 0, None, None),
    ):
        with pytest.raises(ContextError, match=r"install Megatron-Core with pip install 'mimo-launch\[megatron\]'"):
            call()


def test_families_by_hand_have_megatrons_keys(monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 3}})
    dist.init_process_group("fake", store=FakeStore(), rank=12, world_size=world.world_size)
    try:
        options = {"language": GroupOptions(families=(("dp", "cp", "gtp_remat"), ("tp", "pp")))}
        context = mimo_role.init(world, groups=options)
        grid = context.megatron_grid_map()["language"]
        assert members(grid.get_pg(["dp", "cp"])) == [10, 12, 14, 16]
        assert members(grid.get_pg(["tp", "pp"])) == [4, 5, 12, 13, 20, 21]
    finally:
        mimo_role.shutdown()
        dist.destroy_process_group()


def test_a_collection_without_second_groups_has_none_for_them(monkeypatch):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "cp": 2, "dp": 2, "pp": 2}})
    dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=world.world_size)
    try:
        context = mimo_role.init(world)  # families: default
        found = context.megatron_process_groups("language")
        assert getattr(found, "dp_cp_ag", None) is getattr(found, "expt_dp_ag", None) is None
        assert [members(found.ep), members(found.pos_embd), members(found.embd)] == [[2], [2], [2, 10]]
        with pytest.raises(AxisError, match=r"no group dp_cp_ag; ask for it with modules.language.groups.families: megatron"):
            context.group("language", "dp_cp_ag")
    finally:
        mimo_role.shutdown()
        dist.destroy_process_group()


DENSE_WORLD = Topology.from_modules({"vision": {"dp": 2}, "language": {"tp": 2, "dp": 2}})


def mlp_of_megatron():
    """Megatron's tensor-parallel MLP over our tp group: its loss, and the loss of the same weights whole."""
    import warnings

    warnings.filterwarnings("ignore")
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer import TransformerConfig

    context = mimo_role.init(DENSE_WORLD, backend="gloo", groups=MEGATRON)
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
    for loss, whole in run_ranks(mlp_of_megatron, DENSE_WORLD.world_size, timeout_s=110)[2:]:
        assert loss == pytest.approx(whole, rel=1e-5)
