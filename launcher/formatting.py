"""Sets of ranks in words, by what they run."""

from collections.abc import Iterable, Sequence

from mimo_role import Topology

_NAMED = 3


def in_words(topology: Topology, ranks: Iterable[int]) -> str:
    """`rank 5 (language.pp1.tp0)`; of many: `6 of language.pp1 (ranks 8-13), 2 of vision (ranks 0, 2)`."""
    found = sorted(ranks)
    if len(found) <= _NAMED:
        return ", ".join(f"rank {rank} ({topology.label_of(rank)})" for rank in found)
    by_stage: dict[str, list[int]] = {}
    for rank in found:
        by_stage.setdefault(stage_of(topology, rank), []).append(rank)
    return ", ".join(f"{len(members)} of {stage} (ranks {ranges(members)})" for stage, members in by_stage.items())


def stage_of(topology: Topology, rank: int) -> str:
    """A rank's modules, each with its stage where it has several: `language.pp1`."""
    return "+".join(
        f"{name}.pp{coords['pp']}" if topology.grids[name].axis_size("pp") > 1 else name
        for name, coords in topology.coords_of(rank).items()
    )


def ranges(ranks: Iterable[int]) -> str:
    """`0-3, 7`."""
    runs: list[tuple[int, int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], rank)
        else:
            runs.append((rank, rank))
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def prefix_of(topology: Topology, ranks: Sequence[int]) -> str:
    """What stands before a line of output: `[language.pp1.tp0 r5]`; of several ranks: `[language.pp1 r4-5]`."""
    if len(ranks) == 1:
        return f"[{topology.label_of(ranks[0])} r{ranks[0]}]"
    stages = list(dict.fromkeys(stage_of(topology, rank) for rank in sorted(ranks)))
    return f"[{' '.join(stages)} r{ranges(ranks).replace(' ', '')}]"
