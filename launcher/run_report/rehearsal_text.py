"""The result of a rehearsal for a terminal."""

from collections.abc import Iterator, Sequence

from tabulate import tabulate

from launcher.run_dir.rehearsal_result import Rehearsal, RehearsedKind

_MIB = 1 << 20
_LONGEST_ENDING = 60
_HEADERS = ["kind", "ranks", "rehearsed", "steps", "seconds", "host MiB", "result"]


def kinds_table(kinds: Sequence[RehearsedKind]) -> str:
    """A line for each kind."""
    return tabulate([_row(kind) for kind in kinds], headers=_HEADERS, tablefmt="simple", disable_numparse=True)


def lines_of_rehearsal(rehearsal: Rehearsal) -> Iterator[str]:
    """All kinds, the failures, and where the file with more of it is; nothing before the end."""
    if rehearsal.outcome is None:
        return
    yield from ("", kinds_table(rehearsal.outcome.kinds))
    for failure in rehearsal.outcome.failures:
        yield from ("", failure)
    yield from ("", f"all of it: {rehearsal.file}")


def _row(kind: RehearsedKind) -> list[str]:
    return [
        kind.name,
        f"{kind.rank_count:,}",
        str(kind.rehearsed_rank),
        "-" if kind.steps is None else str(kind.steps),
        f"{kind.seconds:.2f}",
        "-" if kind.peak_bytes is None else f"{kind.peak_bytes / _MIB:,.0f}",
        "ok" if kind.exit_code == 0 else kind.ending[:_LONGEST_ENDING],
    ]
