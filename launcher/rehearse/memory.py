"""The memory of a rehearsed job's tensors, and whether it fits the GPUs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tabulate import tabulate

from launcher.errors import LaunchError
from launcher.plan.launch_plan import LaunchPlan
from launcher.rehearse.kind_result import KindResult
from launcher.rehearse.kinds import Kind, described

_GIB = 1 << 30
_PURPOSES = {
    "parameters": "param.",
    "buffers": "buffers",
    "gradients": "grad.",
    "optimizer_state": "optim.",
    "activations": "activ.",
    "communication": "comm.",
    "temporary": "temp.",
    "other": "other",
}
"""By the names in a record, the column of each."""

_TORCH = 2, 13
"""The first release whose tracker counts what is allocated; with 2.11's, predictions were up to 50 % off."""


def check_torch() -> None:
    """
    Raises:
        LaunchError: the memory of tensors cannot be counted with the torch that is installed.
    """
    found = version("torch")
    if tuple(int(part) for part in found.split(".")[:2]) < _TORCH:
        needed = ".".join(map(str, _TORCH))
        raise LaunchError(f"--memory needs torch {needed} or later, whose accounts of memory it uses; this is torch {found}")


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """The peaks of all kinds of which one was recorded, beside what a GPU of their pools has."""

    plan: LaunchPlan
    results: Sequence[KindResult]
    gpu_memory_gib: Mapping[str, float | None]
    """By pool."""

    def table(self) -> str:
        """A line for each kind, in GiB, or in MiB if no kind needs a GiB."""
        counted = [result for result in self.results if "memory" in result.record]
        largest = max((result.record["memory"]["peak_bytes"] for result in counted), default=0)
        unit, shown = ("GiB", _gib) if largest >= _GIB else ("MiB", _mib)
        headers = ["kind", f"peak {unit}", *_PURPOSES.values(), "of a GPU", "most in"]
        rows = [self._row(result, shown) for result in counted]
        return tabulate(rows, headers=headers, tablefmt="simple", disable_numparse=True)

    def too_large(self) -> list[str]:
        """The kinds that do not fit, each with its peak, what a GPU has, and the modules that have most."""
        return [self._too_large(result) for result in self.results if self._is_too_large(result)]

    def ranks_too_large(self) -> int:
        """The number of ranks that need more memory than their GPU has."""
        return sum(len(result.kind.ranks) for result in self.results if self._is_too_large(result))

    def _row(self, result: KindResult, shown: Callable[[float], str]) -> list[str]:
        found, limit = result.record["memory"], self._limit_of(result.kind)
        share = "-" if limit is None else f"{found['peak_bytes'] / (limit * _GIB):.0%}"
        module, size = _largest(found)
        parts = [shown(found[name]) for name in _PURPOSES]
        return [result.kind.name, shown(found["peak_bytes"]), *parts, share, f"{module} ({shown(size)})"]

    def _is_too_large(self, result: KindResult) -> bool:
        limit, found = self._limit_of(result.kind), result.record.get("memory")
        return limit is not None and found is not None and found["peak_bytes"] > limit * _GIB

    def _too_large(self, result: KindResult) -> str:
        found, limit = result.record["memory"], self._limit_of(result.kind)
        assert limit is not None
        module, size = _largest(found)
        most = max(_PURPOSES, key=lambda name: found[name])
        return (
            f"{result.kind.name} ({described(result.kind.ranks)}): tensors need {_gib(found['peak_bytes'])} GiB, "
            f"{_gib(found['peak_bytes'] - limit * _GIB)} GiB more than the {limit:g} GiB of a GPU; most are "
            f"{most.replace('_', ' ')} ({_gib(found[most])} GiB), and most in one module are in {module} ({_gib(size)} GiB)"
        )

    def _limit_of(self, kind: Kind) -> float | None:
        """What the smallest GPU of the kind's ranks has, in GiB."""
        ranks = set(kind.ranks)
        pools = {node.pool for node in self.plan.nodes if not ranks.isdisjoint(node.ranks)}
        return min((size for pool in pools if (size := self.gpu_memory_gib.get(pool)) is not None), default=None)


def _largest(found: Mapping[str, Any]) -> tuple[str, int]:
    """The module with most memory at the peak, and its bytes."""
    return max(
        ((path, sum(parts.values())) for path, parts in found["modules"].items()), key=lambda each: each[1], default=("-", 0)
    )


def _gib(size: float) -> str:
    return f"{size / _GIB:.3f}" if size < 10 * _GIB else f"{size / _GIB:,.1f}"


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.3f}"
