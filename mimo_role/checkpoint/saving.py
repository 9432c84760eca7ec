"""Saving a checkpoint, at once or in the background."""

import hashlib
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_saver

from mimo_role.checkpoint.contents import MANIFEST, Manifest, difference, packed, per_rank_name, unpacked
from mimo_role.checkpoint.inventory import Inventory, digests_of, forms_of, settings_of
from mimo_role.checkpoint.model_state import Modules, names_of, root_of, weights_of
from mimo_role.checkpoint.optimizer_state import NamedOptimizers, Optimizers
from mimo_role.checkpoint.session import CheckpointSession, session_of
from mimo_role.checkpoint.writer import CheckpointWriter
from mimo_role.context import RoleContext
from mimo_role.errors import CheckpointError


def save(
    ctx: RoleContext,
    folder: str | os.PathLike[str],
    step: int,
    modules: Modules,
    optimizer: Optimizers = None,
    extra: Any = None,
    *,
    per_rank: Any = None,
    keep: int | None = None,
    asynchronous: bool = False,
    check_copies: bool = True,
) -> None:
    """Save a checkpoint that any layout can load. Collective over the world.

    Tensors are stored once and whole under the names of their module and in it,
    `vision.blocks.0.attention.query.weight`, so modules need names that do not depend on stages. It is written beside
    its place, and is there, under `FOLDER/step_000100`, when it is complete (docs/guides/checkpoints.md).

    Args:
        ctx: this rank's context.
        folder: of all the job's checkpoints; all ranks see it. One job at a time writes to it.
        step: 0 or more. A checkpoint of the same step is replaced.
        modules: the modules of this rank's role, or its parts of them, by name; wrapped by DDP, `fully_shard`,
            `parallelize_module` or `torch.compile`, or not at all.
        optimizer: those of this rank, none, one or several. States are saved by the name of the parameter, as is what
            its group is set to: `lr`, `betas` and all other numbers and text.
        extra: any picklable value, the same on all ranks, such as a schedule's state. Saved once.
        per_rank: any picklable value of this rank, such as `RandomStreams.rng_state()`. `load` returns it in the same
            layout.
        keep: how many complete checkpoints remain, this one included, at least 1; by default all.
        asynchronous: return when the values have been copied, and write them in the background. The next `save`,
            `load`, `wait` or `shutdown()` waits for the end of the write, and raises its error.
        check_copies: compare the bits of the copies of each parameter that ranks have.

    Raises:
        CheckpointError: something that cannot be saved; ranks that have different values under one name; the files
            cannot be written; a save in the background failed. On all ranks alike; earlier checkpoints stay.
    """
    session = session_of(ctx)
    session.wait()
    writer = CheckpointWriter(Path(folder), step, keep)
    with session.reported(f"{writer.final}: not saved"):
        state = _state_of(ctx, session, step, modules, optimizer, extra, per_rank, keep, check_copies=check_copies)
        if asynchronous:
            response = state_dict_saver.async_save(state, storage_writer=writer, process_group=session.group)
            # A stager that copies in the background makes it a pair of futures.
            future = response if isinstance(response, Future) else response.upload_completion
            session.start(writer.final, future)
        else:
            state_dict_saver.save(state, storage_writer=writer, process_group=session.group)


def wait(ctx: RoleContext) -> None:
    """Wait for the checkpoint that `save(..., asynchronous=True)` writes in the background. On all ranks.

    `mimo_role.shutdown()`, and with it the end of a script under mimo-launch, waits too; but there an error no longer
    changes the script's outcome. Call it at the end of the training loop.

    Raises:
        CheckpointError: the files could not be written, on whichever rank.
    """
    session_of(ctx).wait()


def _state_of(
    ctx: RoleContext,
    session: CheckpointSession,
    step: int,
    modules: Modules,
    optimizer: Optimizers,
    extra: Any,
    per_rank: Any,
    keep: int | None,
    *,
    check_copies: bool,
) -> dict[str, Any]:
    """All that this rank saves, by name, after a comparison with the other ranks. Collective."""
    state: dict[str, Any] = {}
    packed_extra = b""

    def own() -> Inventory:
        nonlocal packed_extra
        _check_numbers(step, keep)
        root = root_of(modules, ctx.topology, ctx.rank)
        names = names_of(root)
        optimizers = NamedOptimizers(optimizer, root, names)
        state.update(weights_of(root))
        forms = forms_of(state)
        state.update((slot.name, slot.holder[slot.key]) for slot in optimizers.slots())
        if per_rank is not None:
            state[per_rank_name(ctx.rank)] = packed(per_rank, "per_rank")
        packed_extra = packed(extra, "extra")
        digests = digests_of(names) if check_copies else {}
        return Inventory(step, forms, digests, optimizers.settings(), hashlib.sha256(packed_extra).hexdigest())

    def decide(inventories: list[Inventory]) -> tuple[dict[str, Any], bytes | None]:
        differs = len({each.extra_digest for each in inventories}) > 1
        settings = settings_of(inventories, session.label_of)
        return settings, packed_extra if differs else None

    settings, first_extra = session.agree(own, decide)
    if first_extra is not None:  # other bytes may be equal values
        session.agree(lambda: _check_same(extra, unpacked(first_extra)), lambda _: None)
    if ctx.rank == 0:
        state[MANIFEST] = Manifest(ctx.topology.digest, settings, packed_extra).packed()
    return state


def _check_same(own: Any, first: Any) -> None:
    if found := difference(own, first, "extra"):
        raise CheckpointError(
            f"extra has to be the same on all ranks, and is not on this one and rank 0: {found}; use per_rank"
        )


def _check_numbers(step: int, keep: int | None) -> None:
    if step < 0:
        raise CheckpointError(f"step={step}; use 0 or more")
    if keep is not None and keep < 1:
        raise CheckpointError(f"keep={keep}; use 1 or more, or None to keep all")
