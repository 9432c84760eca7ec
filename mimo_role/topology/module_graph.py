"""Which module feeds which: encoders, the language module, and modules after it. Pure arithmetic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mimo_role.errors import TopologyError
from mimo_role.role import MIMO_LANGUAGE_MODULE_KEY


@dataclass(frozen=True)
class ModuleGraph:
    """The modules whose outputs each module takes.

    `{"vision": (), "language": ("vision",), "decoder": ("language",)}`. There is no cycle, and every module leads to the
    language module or follows it.
    """

    after: Mapping[str, tuple[str, ...]]
    """By module, in the order of the topology."""

    @classmethod
    def of(cls, names: Sequence[str], given: Mapping[str, Sequence[str]]) -> "ModuleGraph":
        """The graph of some modules.

        A modality module that is not in `given` takes nothing: it is an encoder. The language module, if it is not, takes the
        modules that do not follow it, except those whose outputs another encoder takes.

        Args:
            names: all modules.
            given: what a module takes, for some of them.

        Raises:
            TopologyError: an unknown module, a cycle, or a module that neither leads to the language module nor follows it.
        """
        for name in given:
            if name not in names:
                raise TopologyError(f"modules.{name}.after", f"there is no module {name!r}; there are {', '.join(names)}")
        after = {name: _checked(name, given.get(name, ()), names) for name in names}
        if MIMO_LANGUAGE_MODULE_KEY in after and MIMO_LANGUAGE_MODULE_KEY not in given:
            following = _following(after, MIMO_LANGUAGE_MODULE_KEY)
            encoders = [name for name in names if name not in following and name != MIMO_LANGUAGE_MODULE_KEY]
            taken = {source for name in encoders for source in after[name]}
            after[MIMO_LANGUAGE_MODULE_KEY] = tuple(name for name in encoders if name not in taken)
        _check_cycles(after)
        _check_loose_ends(after)
        return cls(after)

    @cached_property
    def feeds(self) -> dict[str, tuple[str, ...]]:
        """The modules that take each module's output."""
        return {name: tuple(other for other, sources in self.after.items() if name in sources) for name in self.after}

    @cached_property
    def ends(self) -> tuple[str, ...]:
        """The modules that feed no other: they compute a loss."""
        return tuple(name for name, targets in self.feeds.items() if not targets)

    @cached_property
    def is_default(self) -> bool:
        """Whether all modality modules are encoders that feed the language module and no other."""
        return self.after == ModuleGraph.of(list(self.after), {}).after

    def before(self, name: str) -> set[str]:
        """All modules whose outputs reach this one, over any number of others."""
        return _following({other: self.feeds[other] for other in self.after}, name)


def _checked(name: str, sources: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """What a module takes, in the order of the topology."""
    others = [other for other in names if other != name]
    for source in sources:
        if source not in others:
            raise TopologyError(
                f"modules.{name}.after", f"={source} is no other module; there are {', '.join(others) or 'none'}"
            )
    return tuple(other for other in others if other in sources)


def _following(after: Mapping[str, Sequence[str]], name: str) -> set[str]:
    """The modules that take a module's output, or that of one that does, and so on."""
    found: set[str] = set()
    new = {name}
    while new:
        new = {other for other, sources in after.items() if not new.isdisjoint(sources)} - found
        found |= new
    return found


def _check_cycles(after: Mapping[str, Sequence[str]]) -> None:
    for name in after:
        path = _path(after, name)
        if path:
            raise TopologyError(f"modules.{name}.after", f"={path[-2]} is a cycle: {' -> '.join(path)}")


def _path(after: Mapping[str, Sequence[str]], name: str) -> list[str]:
    """The modules on a way from a module back to it, in the order of data; empty if there is none."""
    ways = [[name]]
    seen = set()
    while ways:
        way = ways.pop()
        for source in after[way[0]]:
            if source == name:
                return [name, *way]
            if source not in seen:
                seen.add(source)
                ways.append([source, *way])
    return []


def _check_loose_ends(after: Mapping[str, Sequence[str]]) -> None:
    following = _following(after, MIMO_LANGUAGE_MODULE_KEY)
    for name in after:
        is_taken = any(name in sources for sources in after.values())
        if not is_taken and name != MIMO_LANGUAGE_MODULE_KEY and name not in following:
            raise TopologyError(
                f"modules.{name}",
                f"no module takes its output; name it in the after of another module, such as "
                f"modules.{MIMO_LANGUAGE_MODULE_KEY}.after, or remove it",
            )
