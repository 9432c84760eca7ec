"""Checkpoints under names that no layout changes, written by all ranks together."""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from mimo_role import MimoError, RoleContext

_OPTIONS = StateDictOptions(flatten_optimizer_state_dict=True)


class Checkpoints:
    """The folder `checkpoints` of a run, with one folder per saved step: `step_000100`.

    Every weight is stored once, under its module's and its own name (`vision.blocks.0.attention.query.weight`), whichever
    ranks hold it. So a checkpoint can be read back in another layout. All nodes must see the folder.
    """

    def __init__(self, ctx: RoleContext, run_folder: Path) -> None:
        self._ctx = ctx
        self.folder = run_folder / "checkpoints"

    def last_step(self) -> int | None:
        """The last step that was saved completely, as rank 0 sees it. Collective over the world."""
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        last = [max((int(match[1]) for match in found if match), default=None)]
        dist.broadcast_object_list(last, src=0)
        return last[0]

    def save(self, step: int, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        """Write a checkpoint beside its place, and move it there when all ranks have written. Collective over the world."""
        folder = self._folder_of(step)
        unfinished = folder.with_suffix(".tmp")
        if self._ctx.rank == 0:
            shutil.rmtree(unfinished, ignore_errors=True)
        dist.barrier()
        dcp.save(_stored(*get_state_dict(modules, optimizer, options=_OPTIONS)), checkpoint_id=unfinished)
        if self._ctx.rank == 0:
            unfinished.rename(folder)
        dist.barrier()

    def load(self, step: int, modules: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
        """Read a checkpoint into modules and optimizer. Collective over the world.

        Raises:
            MimoError: it was saved from other modules or sizes.
        """
        weights, moments = get_state_dict(modules, optimizer, options=_OPTIONS)
        try:
            dcp.load(_stored(weights, moments), checkpoint_id=self._folder_of(step))
        except dcp.CheckpointException as error:
            first, _ = next(iter(error.failures.values()))
            raise MimoError(f"{self._folder_of(step)} does not fit this model: {first}") from error
        set_state_dict(modules, optimizer, model_state_dict=weights, optim_state_dict=moments, options=_OPTIONS)

    def _folder_of(self, step: int) -> Path:
        return self.folder / f"step_{step:06}"


def _stored(weights: dict[str, Any], moments: dict[str, Any]) -> dict[str, Any]:
    """What goes into the file: all tensors. The optimizer's settings do not; they come from the command line."""
    return weights | {name: value for name, value in moments.items() if isinstance(value, torch.Tensor)}
