"""Loading a checkpoint, from whichever layout it was saved in."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader

from mimo_role.checkpoint import folders
from mimo_role.checkpoint.contents import Manifest, is_per_rank, is_state, per_rank_name, unpacked
from mimo_role.checkpoint.model_state import Modules
from mimo_role.checkpoint.optimizer_state import PREFIX, Optimizers
from mimo_role.checkpoint.session import session_of
from mimo_role.checkpoint.target import Fit, Target
from mimo_role.context import RoleContext
from mimo_role.errors import CheckpointError

logger = logging.getLogger(__name__)
_NAMED = 10


@dataclass(frozen=True)
class Loaded:
    """What `load` returns beside what it puts into modules and optimizers."""

    step: int
    extra: Any
    """As `save` got it. Tensors are on the CPU."""
    per_rank: Any
    """As this rank's `save` got it, if the layout is the same; otherwise `None`."""


class _Chosen(NamedTuple):
    """What rank 0 has found."""

    step: int
    name: str
    manifest: Manifest


def load(
    ctx: RoleContext,
    folder: str | os.PathLike[str],
    modules: Modules,
    optimizer: Optimizers = None,
    step: int | None = None,
    *,
    strict: bool = True,
) -> Loaded | None:
    """Load a checkpoint into modules and optimizers, in place. Collective over the world.

    The layout may be another than that in which it was saved. Rank 0 chooses the checkpoint for all ranks.

    Args:
        ctx: this rank's context.
        folder: as in `save`.
        modules: as in `save`.
        optimizer: as in `save`. Gradients are set to `None`. Without one on any rank, states in the checkpoint are
            left out.
        step: by default the last of which there is a complete checkpoint. An incomplete one is passed over with a
            warning.
        strict: whether names that are only in the checkpoint, or only here, and tensors of another type are errors.
            Otherwise the former are left out, the second stay as they are, and the last are converted.

    Returns:
        `None` if the folder has no checkpoint at all.

    Raises:
        CheckpointError: there is none of this step, or all are incomplete; names, shapes or types do not fit; the
            files cannot be read. On all ranks alike. Then the optimizers have no states, and some tensors may have
            been loaded.
    """
    session = session_of(ctx)
    session.wait()
    chosen = session.agree(lambda: step, lambda steps: _choose(Path(folder), steps))
    if chosen is None:
        return None
    path = Path(folder) / chosen.name
    with session.reported(f"{path}: not loaded"):
        target = Target(path, chosen.manifest, strict=strict)
        session.agree(
            lambda: target.build(ctx, modules, optimizer), lambda fits: _check_fits(fits, target.saved, strict=strict)
        )
        _add_per_rank(ctx, chosen.manifest, target, path)
        state_dict_loader.load(target.state, storage_reader=FileSystemReader(path), process_group=session.group)
        target.finish()
        own = target.state.get(per_rank_name(ctx.rank))
        return Loaded(chosen.step, unpacked(chosen.manifest.extra), None if own is None else unpacked(own))


def _choose(folder: Path, steps: list[int | None]) -> _Chosen | None:
    """What rank 0 finds."""
    if len(set(steps)) > 1:
        raise CheckpointError(f"ranks load different steps: {sorted(set(map(str, steps)))}")
    found = folders.find(folder, steps[0])
    return None if found is None else _Chosen(found.step, found.path.name, Manifest.read(found.path))


def _add_per_rank(ctx: RoleContext, manifest: Manifest, target: Target, path: Path) -> None:
    name = per_rank_name(ctx.rank)
    if manifest.topology_digest == ctx.topology.digest and name in target.saved:
        target.state[name] = b""
    elif ctx.rank == 0 and any(map(is_per_rank, target.saved)):
        logger.warning("%s was saved in another layout: what it has per rank is left out, such as random states", path)


def _check_fits(fits: list[Fit], saved: Mapping[str, Any], *, strict: bool) -> None:
    """
    Raises:
        CheckpointError: names, shapes or types do not fit.
    """
    problems = dict.fromkeys(problem for fit in fits for problem in fit.problems)
    wanted = set().union(*(fit.wanted for fit in fits))
    if not any(fit.has_optimizer for fit in fits):
        wanted |= {name for name in saved if name.startswith(PREFIX)}
    left_over = [f"{name} is only in the checkpoint" for name in saved if is_state(name) and name not in wanted]
    if strict:
        problems |= dict.fromkeys(left_over)
    elif left_over:
        logger.warning("%s", _listed(left_over))
    if problems:
        raise CheckpointError(f"{_listed(list(problems))}{'. strict=False loads what fits' if strict else ''}")


def _listed(lines: Sequence[str]) -> str:
    more = f"; {len(lines) - _NAMED} more" if len(lines) > _NAMED else ""
    return "; ".join(lines[:_NAMED]) + more
