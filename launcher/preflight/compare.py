"""The comparison of all ranks before they join: what would break the job, and what is merely odd."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.coordination.membership import listed
from launcher.formatting import ranges, stage_of
from launcher.preflight.facts import Facts
from mimo_role import Topology

_SHOWN = 12


@dataclass(frozen=True)
class Aspect:
    """One thing in which ranks should agree."""

    name: str
    value_of: Callable[[Facts], str]
    breaks: bool
    """Whether the job cannot run where they do not."""


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Ranks that differ from most in one aspect."""

    aspect: str
    value: str
    usual: str
    ranks: tuple[int, ...]
    breaks: bool


@dataclass(frozen=True)
class Verdict:
    """What the comparison has found."""

    odd: Sequence[Mismatch]

    @property
    def stops(self) -> bool:
        """Whether the job cannot run."""
        return any(odd.breaks for odd in self.odd)

    def text(self, topology: Topology, facts: Sequence[Facts]) -> str:
        """A table that names the odd ones by module and host."""
        from tabulate import tabulate

        hosts = {fact.rank: fact.host for fact in facts}
        rows = []
        for odd in self.odd[:_SHOWN]:
            stages = ", ".join(dict.fromkeys(stage_of(topology, rank) for rank in odd.ranks))
            where = listed(list(dict.fromkeys(hosts[rank] for rank in odd.ranks)))
            rows.append(
                [odd.aspect, odd.value, odd.usual, ranges(odd.ranks), stages, where, "ends the job" if odd.breaks else ""]
            )
        headers = ["what", "found", "others have", "ranks", "module", "host", ""]
        table = tabulate(rows, headers=headers, disable_numparse=True)
        more = [f"and {len(self.odd) - _SHOWN} more"] if len(self.odd) > _SHOWN else []
        told = "the ranks do not fit together" if self.stops else "the ranks differ"
        advice = "; start all nodes from the same config, code and environment, or skip this with --no-preflight"
        lines = [told + (advice if self.stops else ""), *table.splitlines(), *more]
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
    """Find the ranks that differ from most. `needs_gpus`: each takes the GPU with its local rank."""
    found = [odd for aspect in _ASPECTS for odd in _odd(facts, aspect)]
    if any(odd.aspect == "Python" for odd in found):
        found = [odd for odd in found if odd.aspect != "Python patch"]
    without = tuple(fact.rank for fact in facts if needs_gpus and fact.local_rank >= fact.gpus)
    if without:
        seen = ", ".join(sorted({str(fact.gpus) for fact in facts if fact.rank in without}))
        found.append(
            Mismatch(aspect="GPU of the local rank", value=f"{seen} visible", usual="one each", ranks=without, breaks=True)
        )
    nameless = tuple(fact.rank for fact in facts if not fact.resolves)
    if nameless:
        found.append(Mismatch(aspect="own host name", value="has no address", usual="an address", ranks=nameless, breaks=False))
    return Verdict(sorted(found, key=lambda odd: not odd.breaks))


def _odd(facts: Sequence[Facts], aspect: Aspect) -> list[Mismatch]:
    values = {fact.rank: aspect.value_of(fact) for fact in facts}
    counted = Counter(values.values())
    # Of two that are equally frequent, rank 0's is the usual one.
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
