"""Compares the facts of all ranks before they join: which differ, and whether the job can run."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.formatting import listed, ranges, stage_of
from launcher.preflight.facts import Facts
from mimo_role import Topology

_SHOWN = 12


@dataclass(frozen=True)
class Aspect:
    """One fact in which ranks should agree."""

    name: str
    value_of: Callable[[Facts], str]
    breaks: bool
    """Whether the job cannot run if they differ."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Ranks that differ from the majority in one aspect."""

    aspect: str
    value: str
    usual: str
    ranks: tuple[int, ...]
    breaks: bool


@dataclass(frozen=True)
class Verdict:
    """The result of the comparison."""

    mismatches: Sequence[Mismatch]

    @property
    def stops(self) -> bool:
        """Whether the job cannot run."""
        return any(mismatch.breaks for mismatch in self.mismatches)

    def text(self, topology: Topology, facts: Sequence[Facts]) -> str:
        """A table of the mismatches, with modules and hosts."""
        from tabulate import tabulate

        hosts = {fact.rank: fact.host for fact in facts}
        rows = []
        for mismatch in self.mismatches[:_SHOWN]:
            stages = ", ".join(dict.fromkeys(stage_of(topology, rank) for rank in mismatch.ranks))
            where = listed(list(dict.fromkeys(hosts[rank] for rank in mismatch.ranks)))
            verdict = "ends the job" if mismatch.breaks else ""
            rows.append([mismatch.aspect, mismatch.value, mismatch.usual, ranges(mismatch.ranks), stages, where, verdict])
        headers = ["what", "found", "others have", "ranks", "module", "host", ""]
        table = tabulate(rows, headers=headers, disable_numparse=True)
        more = [f"and {len(self.mismatches) - _SHOWN} more"] if len(self.mismatches) > _SHOWN else []
        headline = "the ranks do not fit together" if self.stops else "the ranks differ"
        advice = "; start all nodes from the same config, code and environment, or skip this with --no-preflight"
        lines = [headline + (advice if self.stops else ""), *table.splitlines(), *more]
        return "\n".join([lines[0], *(f"  {line}".rstrip() for line in lines[1:])])


_ASPECTS = (
    Aspect("topology", lambda facts: facts.topology[:12], breaks=True),
    Aspect("script", lambda facts: facts.script or "-", breaks=True),
    Aspect("mimo-launch", lambda facts: facts.mimo_launch, breaks=True),
    Aspect("torch", lambda facts: facts.torch, breaks=True),
    Aspect("NCCL", lambda facts: facts.nccl or "-", breaks=True),
    Aspect("CUDA", lambda facts: facts.cuda or "-", breaks=False),
    Aspect("Python", lambda facts: ".".join(facts.python.split(".")[:2]), breaks=True),
    Aspect("Python patch", lambda facts: facts.python, breaks=False),
    Aspect("visible GPUs", lambda facts: str(facts.gpus), breaks=False),
)


def compare(facts: Sequence[Facts], *, needs_gpus: bool) -> Verdict:
    """Find the ranks that differ from the majority. With `needs_gpus`, each rank uses the GPU with its local rank."""
    found = [mismatch for aspect in _ASPECTS for mismatch in _mismatches(facts, aspect)]
    if any(mismatch.aspect == "Python" for mismatch in found):
        found = [mismatch for mismatch in found if mismatch.aspect != "Python patch"]
    without = tuple(fact.rank for fact in facts if needs_gpus and fact.local_rank >= fact.gpus)
    if without:
        seen = ", ".join(sorted({str(fact.gpus) for fact in facts if fact.rank in without}))
        found.append(
            Mismatch(aspect="GPU of the local rank", value=f"{seen} visible", usual="one each", ranks=without, breaks=True)
        )
    nameless = tuple(fact.rank for fact in facts if not fact.resolves)
    if nameless:
        found.append(Mismatch(aspect="own host name", value="has no address", usual="an address", ranks=nameless, breaks=False))
    return Verdict(sorted(found, key=lambda mismatch: not mismatch.breaks))


def _mismatches(facts: Sequence[Facts], aspect: Aspect) -> list[Mismatch]:
    values = {fact.rank: aspect.value_of(fact) for fact in facts}
    counted = Counter(values.values())
    # Of two equally frequent values, rank 0's is the usual one.
    first = values[min(values)]
    usual = max(counted, key=lambda value: (counted[value], value == first))
    return [
        Mismatch(
            aspect=aspect.name,
            value=value,
            usual=usual,
            ranks=tuple(rank for rank, found in values.items() if found == value),
            breaks=aspect.breaks,
        )
        for value in counted
        if value != usual
    ]
