"""Facts of ranks, for tests of their comparison."""

from dataclasses import replace

from launcher.preflight.facts import Facts

USUAL = Facts(
    rank=0,
    local_rank=0,
    host="hosta",
    topology="a" * 64,
    script="0123456789ab",
    python="3.11.7",
    torch="2.13.0",
    cuda="13.0",
    nccl="2.29.3",
    mimo_launch="0.4",
    gpus=8,
    resolves=True,
)


def facts_of(world_size, ranks_per_host=2, **changes):
    """The facts of all ranks; `changes` are `r3={"torch": "2.9"}`."""
    usual = [
        replace(USUAL, rank=rank, local_rank=rank % ranks_per_host, host=f"host{rank // ranks_per_host}")
        for rank in range(world_size)
    ]
    return [replace(fact, **changes.get(f"r{fact.rank}", {})) for fact in usual]
