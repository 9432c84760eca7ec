"""What advise needs to know of a rehearsal beside its recordings: whether its times count, and whether ranks meet."""

import json
from typing import Any

from launcher.errors import LaunchError
from launcher.exit_code import ExitCode
from launcher.run_dir.layout import RunDirLayout
from launcher.run_dir.lock import is_locked


def ranks_meet(files: RunDirLayout) -> bool:
    """Whether all ranks of a rehearsed job take part in a collective in each step.

    Raises:
        LaunchError: the rehearsal has no times that count: it is going on or was interrupted, counted memory, or kinds of ranks
            failed.
    """
    if is_locked(files):
        raise LaunchError(f"{files.path}: this rehearsal is going on; advise reads it when it has ended")
    try:
        found: dict[str, Any] = json.loads(files.rehearsal_file.read_text(encoding="utf-8"))
        failed = [kind["kind"] for kind in found["kinds"] if kind["exit_code"] not in (ExitCode.SUCCESS, ExitCode.REQUEUE)]
        counted_memory, meets = found.get("tensors"), [kind.get("meets") for kind in found["kinds"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise LaunchError(f"{files.path}: this rehearsal has no result; run mimo-launch rehearse to its end") from None
    if counted_memory is not None:
        raise LaunchError(
            f"{files.path}: a rehearsal with --memory has no times, which advise needs; rehearse without --memory, --steps 4"
        )
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise LaunchError(
            f"{files.path}: {failed[0]}{more} failed in this rehearsal; advise needs the times of all kinds of ranks: "
            "rehearse again once they pass"
        )
    return all(each is True for each in meets)
