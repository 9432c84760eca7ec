"""The folder of a job's checkpoints, and which of them are complete.

`step_000100` is the checkpoint of step 100 and `step_000100.tmp` one that is being written. `step_000100.replaced` was
the checkpoint of that step until another one was saved; it counts while there is no complete `step_000100`. `.removed`
is one that is being removed.
"""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch.distributed.checkpoint.filesystem import FileSystemReader

from mimo_role.errors import CheckpointError

logger = logging.getLogger(__name__)

_SAVED = re.compile(r"step_(\d+)(\.replaced)?")
_LEFT_OVER = re.compile(r"step_\d+(\.replaced)?\.(tmp|removed)")


class Saved(NamedTuple):
    """A checkpoint in its folder."""

    step: int
    path: Path


def latest(folder: str | os.PathLike[str]) -> int | None:
    """The last step of which there is a complete checkpoint; `None` if there is none.

    It reads the folder and does not communicate. For an incomplete checkpoint that it passes over, it logs a warning.
    """
    return next((saved.step for saved in complete(Path(folder))), None)


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step_{step:06}"


def complete(folder: Path) -> Iterator[Saved]:
    """All complete checkpoints, the last step first. Incomplete ones are logged."""
    steps = set()
    for saved in _all(folder):
        if saved.step in steps:
            continue
        if problem := problem_of(saved.path):
            logger.warning("%s is not complete and is passed over: %s", saved.path, problem)
        else:
            steps.add(saved.step)
            yield saved


def find(folder: Path, step: int | None) -> Saved | None:
    """The complete checkpoint of a step, or of the last one; `None` if the folder has no checkpoint at all.

    Raises:
        CheckpointError: there is none of that step, or all are incomplete.
    """
    found = next((saved for saved in complete(folder) if step in (None, saved.step)), None)
    if found is not None:
        return found
    if step is not None:
        steps = ", ".join(str(saved.step) for saved in complete(folder)) or "none"
        raise CheckpointError(f"{folder}: there is no complete checkpoint of step {step}; there are: {steps}")
    if broken := _all(folder):
        raise CheckpointError(
            f"{folder}: all {len(broken)} checkpoints are incomplete, {broken[0].path.name} is the last one: "
            f"{problem_of(broken[0].path)}. To start anew, remove them or use another folder"
        )
    return None


def problem_of(path: Path) -> str | None:
    """What a checkpoint lacks; `None` if it is complete."""
    try:
        metadata = FileSystemReader(path).read_metadata()
        ends: dict[str, int] = {}
        for stored in metadata.storage_data.values():
            ends[stored.relative_path] = max(stored.offset + stored.length, ends.get(stored.relative_path, 0))
    except Exception as error:  # unpickling raises anything
        return f".metadata cannot be read ({type(error).__name__}: {error})"
    for name, end in sorted(ends.items()):
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            return f"{name} is missing"
        if size < end:
            return f"{name} has {size} bytes of {end}"
    return None


def put_in_place(unfinished: Path, final: Path) -> None:
    """Rename a checkpoint whose files have been written. At any moment a complete one remains if there was one.

    Raises:
        OSError: the folder cannot be changed.
    """
    _sync(unfinished)
    if final.exists():
        replaced = final.with_name(f"{final.name}.replaced")
        if replaced.exists():
            remove(final)
        else:
            final.rename(replaced)
    unfinished.rename(final)
    _sync(final.parent)


def clear_left_over(folder: Path) -> None:
    """Remove what is left of interrupted saves and removals. What cannot be removed is logged."""
    if folder.is_dir():
        _remove_all([path for path in folder.iterdir() if _LEFT_OVER.fullmatch(path.name)])


def thin_out(folder: Path, step: int, keep: int | None) -> None:
    """Remove replaced checkpoints, and all complete ones but that of `step` and the last others, `keep` in all.

    What cannot be removed is logged: the checkpoint of `step` is complete all the same.
    """
    own = path_of(folder, step)
    doomed = [saved.path for saved in _all(folder) if saved.path.suffix and problem_of(path_of(folder, saved.step)) is None]
    if keep is not None:
        others = [saved.path for saved in complete(folder) if saved.path != own]
        doomed += others[keep - 1 :]
    _remove_all(doomed)


def _remove_all(paths: list[Path]) -> None:
    for path in paths:
        try:
            remove(path)
        except OSError as error:
            logger.warning("%s cannot be removed: %s", path, error)


def remove(path: Path) -> None:
    """Remove a folder, under another name, so that an interruption leaves nothing that could be taken for a checkpoint.

    Raises:
        OSError: it cannot be removed.
    """
    if not path.exists():
        return
    doomed = path
    if not path.name.endswith(".removed"):
        doomed = path.with_name(f"{path.name}.removed")
        remove(doomed)
        path.rename(doomed)
    shutil.rmtree(doomed)


def _all(folder: Path) -> list[Saved]:
    """Complete or not, the last step first; one that was replaced after the one that replaced it."""
    if not folder.is_dir():
        return []
    matches = [(path, match) for path in folder.iterdir() if (match := _SAVED.fullmatch(path.name))]
    ordered = sorted(matches, key=lambda found: (-int(found[1][1]), found[1][2] is not None))
    return [Saved(int(match[1]), path) for path, match in ordered]


def _sync(folder: Path) -> None:
    """Have the disk know the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
