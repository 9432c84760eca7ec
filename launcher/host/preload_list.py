"""The modules that the fork server imports for all ranks, as the agent lists them for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class ModuleToPreload(NamedTuple):
    """One of them, with words for messages about it."""

    name: str
    key: str
    """What it comes from, such as `runtime.preload[0]`."""
    cure: str
    """How to leave it out."""
    is_listed: bool
    """Whether the user has asked for it. Another one that does not fit is left to the ranks."""

    @classmethod
    def listed(cls, at: int, name: str) -> "ModuleToPreload":
        """One of `runtime.preload`."""
        return cls(name, f"runtime.preload[{at}]", f"remove {name} from runtime.preload", is_listed=True)

    @classmethod
    def automatic(cls, name: str) -> "ModuleToPreload":
        """One that torch will import in each rank because of what the script does."""
        cure = f"use `runtime: {{preload: [torch]}}`, with which the ranks import {name} themselves"
        return cls(name, "the script's imports", cure, is_listed=False)


class PreloadList(NamedTuple):
    """All of them, in the order in which they are imported."""

    modules: tuple[ModuleToPreload, ...]
    entry: Mapping[str, Any]
    """The fields of the plan's `Entry`: they are imported as it would import them."""

    def without_automatic(self) -> "PreloadList | None":
        """Those that the user has asked for, if there are any."""
        listed = tuple(module for module in self.modules if module.is_listed)
        return PreloadList(listed, self.entry) if listed else None

    def to_json(self) -> dict[str, Any]:
        """As the server gets it."""
        return {"modules": self.modules, "entry": dict(self.entry)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "PreloadList":
        """The reverse of `to_json`."""
        return cls(tuple(ModuleToPreload(*each) for each in data["modules"]), data["entry"])
