"""Grids and groups as a user of Megatron-Core creates them, without mimo_role: what the example is compared with."""

from itertools import chain

import torch.distributed as dist
from megatron.core.hyper_comm_grid import HyperCommGrid
from megatron.core.parallel_state import default_embedding_ranks, default_position_embedding_ranks
from megatron.core.process_groups_config import MultiModuleProcessGroupCollection, ProcessGroupCollection

DENSE = {
    "tp": ["tp"],
    "cp": ["cp"],
    "pp": ["pp"],
    "dp": ["dp"],
    "dp_cp": ["dp", "cp"],
    "tp_cp": ["tp", "cp"],
    "tp_dp_cp": ["tp", "dp", "cp"],
    "mp": ["tp", "pp"],
    "intra_dist_opt": ["tp", "cp", "dp", "pp"],
}
EXPERTS = {
    "ep": ["ep"],
    "expt_tp": ["expt_tp"],
    "expt_dp": ["expt_dp"],
    "tp_ep": ["expt_tp", "ep"],
    "tp_ep_pp": ["expt_tp", "ep", "pp"],
}
"""Fields of `ProcessGroupCollection`, and the axes of each."""


class MegatronsOwn:
    """A context whose groups for Megatron-Core are Megatron-Core's own. Creating one is collective over the world."""

    def __init__(self, context, sizes):
        """`sizes`: of every module, `{"tp": 2, "dp": 1, "pp": 2, "ep": 2}`, in the order of their ranks."""
        self._context = context
        self._grids, self._collections, first = {}, {}, 0
        for module, given in sizes.items():
            self._grids[module] = grid_of({"tp": 1, "dp": 1, "pp": 1, "ep": 1, **given}, first)
            first += self._grids[module].size
            found = collection_of(self._grids[module], is_language=module == "language")
            if self._grids[module].is_current_rank_in_grid():
                self._collections[module] = found

    def __getattr__(self, name):
        return getattr(self._context, name)

    def megatron_grid_map(self):
        return self._grids

    def megatron_process_groups(self, module):
        return self._collections[module]

    def megatron_multi_module_process_groups(self):
        language = "language" if "language" in self._collections else None
        return MultiModuleProcessGroupCollection(self._collections, language_model_module_name=language)


def grid_of(sizes, first):
    grid = HyperCommGrid([sizes["tp"], 1, sizes["dp"], sizes["pp"]], ["tp", "cp", "dp", "pp"], rank_offset=first)
    experts = [1, sizes["ep"], sizes["tp"] * sizes["dp"] // sizes["ep"], sizes["pp"]]
    grid.register_view("expert", experts, ["expt_tp", "ep", "expt_dp", "pp"], shared_dims=["pp"])
    for axes in DENSE.values():
        grid.create_pg(axes)
    for axes in EXPERTS.values():
        grid.create_pg(axes, view="expert")
    return grid


def collection_of(grid, *, is_language):
    groups = {name: grid.get_pg(axes) for name, axes in DENSE.items()}
    groups |= {name: grid.get_pg(axes, view="expert") for name, axes in EXPERTS.items()}
    groups["intra_dp_cp"], groups["intra_expt_dp"] = groups["dp_cp"], groups["expt_dp"]
    groups["embd"] = groups["pos_embd"] = None
    if is_language:
        for row in grid.get_rank_enum("pp"):
            ends = {"embd": default_embedding_ranks(row), "pos_embd": default_position_embedding_ranks(row)}
            for name, ranks in ends.items():
                group = dist.new_group(ranks)
                if dist.get_rank() in ranks:
                    groups[name] = group
    return ProcessGroupCollection(**groups)


def tensors_of(trainer):
    """This rank's parameters, then Adam's states of its shards."""
    infos = trainer.optimizer.module_infos.values()
    parts = chain.from_iterable(info.optimizer.chained_optimizers for info in infos if info.optimizer)
    states = chain.from_iterable(part.optimizer.state.values() for part in parts)
    return [*trainer.model.parameters(), *(state[name] for state in states for name in ("exp_avg", "exp_avg_sq"))]
